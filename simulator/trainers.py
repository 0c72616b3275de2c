"""Who computes what silos compute: the job's own task, or a formula."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anabranch.wire.manifest import Manifest, TensorSpec
from simulator.chance import generator
from simulator.engine import Trained
from simulator.flat import Flat
from simulator.scenario import Synthetic

PLACES = 2  # what the generator of (seed, this, silo) draws
RATE = 0.05  # of the way a synthetic silo goes in one task


@dataclass
class SyntheticTrainer:
    """Every silo goes a little of the way to a place of its own, with noise. The mean of the places is the best model."""

    settings: Synthetic
    seed: int
    base_sha256: None = None  # a vector has nothing that is frozen

    def __post_init__(self) -> None:
        size = self.settings.parameters
        self.manifest = Manifest((TensorSpec("vector", (size,), "trainable"),))
        self.initial = Flat(self.manifest, np.ones(size, np.float32))
        chance = generator(self.seed, PLACES)
        self._noise = chance.standard_normal(2 * size, np.float32) * np.float32(self.settings.noise)

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained:
        size = self.settings.parameters
        shift = int(cycle[:8], 16) % size
        place = np.float32(self.settings.spread * (2 * ((silo * 0.618034) % 1.0) - 1))
        delta = np.subtract(place, base.values)
        delta += self._noise[shift : shift + size]
        delta *= np.float32(RATE)
        return Trained(Flat(self.manifest, delta), 1, float(delta[0]))

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        return self.measure(job, parameters, split)

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        distance = float(np.sqrt(np.mean(np.square(parameters.values, dtype=np.float64))))
        return {"accuracy": 1.0 / (1.0 + distance), "distance": distance}, 1
