"""Mode paper with the real reviver: the eight models that came last teach, and what they left behind stays."""

from dataclasses import dataclass, field

import numpy as np
import torch

from anabranch.terms import Revival
from anabranch.wire.manifest import Manifest, TensorSpec
from reviver.inputs import Pictures
from reviver.reviver import Reviver
from silo_agent.training.inputs import Images
from simulator.engine import RevivalTask, Teaching
from simulator.flat import Flat
from simulator.reviving import JobReviver

SPECS = Manifest((TensorSpec("1.weight", (3, 64), "trainable"), TensorSpec("1.bias", (3,), "trainable")))
SETTINGS = Revival.model_validate(
    {
        "mode": "paper",
        "s_max": 2.0,
        "freeze": 0,
        "warmup": 1,
        "synthesis_every": 1,
        "synthesis_batch": 16,
        "synthesis_teachers": 8,
    }
)


@dataclass
class Court:
    """Silos take turns in handing in models; the newest eight teach."""

    paper: bool
    reviver: Reviver = field(init=False)
    newest: list[Teaching] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        self.reviver = Reviver(model, Pictures(Images((1, 8, 8))), SETTINGS, 3)
        self.job = JobReviver(self.reviver, 0.0, self.paper)

    def hear(self, version: int, silo: str) -> None:
        chance = np.random.Generator(np.random.PCG64(version))
        base = Flat(SPECS, np.zeros(195, np.float32))
        delta = Flat(SPECS, chance.normal(size=195).astype(np.float32))
        self.newest = [*self.newest, Teaching(silo, f"update-{version}", base, delta)][-8:]
        slots = {one.update if self.paper else one.silo: one for one in self.newest}
        self.job.revive(RevivalTask("revival", "vector", version, base, slots), 0.0)


def test_in_mode_paper_inputs_outlive_the_models_they_were_made_with() -> None:
    """They went, and the generator began anew, whenever a ninth model pushed out the first."""
    court = Court(paper=True)
    generator = court.reviver._synthesis
    for version in range(24):
        court.hear(version, f"silo-{version}")
    reviver = court.reviver
    assert len(reviver.teachers) == 8
    made = [batch for pool in (reviver._pool, reviver._held) for batch in pool._batches]
    assert len(made) == 24
    assert reviver._synthesis is generator


def test_otherwise_a_silo_that_teaches_no_longer_is_forgotten() -> None:
    court = Court(paper=False)
    for version in range(24):
        court.hear(version, f"silo-{version}")
    reviver = court.reviver
    assert len(reviver.teachers) == 8
    for pool in (reviver._pool, reviver._held):
        assert all(batch.silos <= set(reviver.teachers.slots) for batch in pool._batches)


def test_in_mode_paper_what_a_silo_holds_is_guessed_once() -> None:
    """From its first two models, however many others taught in between."""
    court, found = Court(paper=True), []
    for version in range(40):
        silo = f"silo-{version % 10}"
        court.hear(version, silo)
        if silo == "silo-3":
            found.append(court.reviver.teachers.slots[f"update-{version}"].proportions)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[2], found[3])


def test_in_mode_paper_a_silo_that_came_twice_teaches_twice() -> None:
    court = Court(paper=True)
    for version in range(8):
        court.hear(version, f"silo-{version % 2}")
    assert sorted(one.silo for one in court.reviver.teachers) == ["silo-0"] * 4 + ["silo-1"] * 4
