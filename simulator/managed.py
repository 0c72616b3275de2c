"""Silos that train the job's own task with the platform's own loop (`silo_agent.training.managed`), in this process."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from anabranch.terms import JobFile
from silo_agent.training import tensors
from silo_agent.training.adapters import base_digest
from silo_agent.training.managed import Managed, build_model
from silo_agent.training.task import SiloData, Task
from simulator.engine import Trained
from simulator.flat import Flat, read, write

LOADED = 64  # silos whose model and records are in memory; what others need lies in their folders


@dataclass
class ManagedTrainer:
    """One job's silos. `data` is what each reads; `measured` what `measure` reads. Deterministic with one thread."""

    task: Callable[[], Task]  # a new one for each silo: what it keeps of its data is nobody else's
    file: JobFile
    data: Sequence[Path]
    measured: Path | None
    folder: Path
    base: Path | None = None  # the folder of the base model that the job names
    names: Sequence[str] = ()  # of the silos, where the job speaks of them
    _loaded: "OrderedDict[int, Managed]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        # Without a GPU one thread is enough, and no operation is refused that silos may use.
        torch.use_deterministic_algorithms(torch.cuda.is_available())
        model = build_model(self.task(), self.file, self.base)
        self.manifest = tensors.manifest_of(model, self.file.training.buffers)
        self.base_sha256 = base_digest(model, self.file.training.buffers)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "initial.safetensors"
        tensors.save_values(model, path, self.manifest)
        self.initial = read(path, self.manifest)
        self._base: tuple[Flat | None, Path] = None, self.folder / "base.safetensors"

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained:
        out = self.folder / "update.safetensors"
        done = self._silo(silo).train(
            {
                "do": "train",
                "cycle": cycle,
                "version": version,
                "parameters": str(self._file(base)),
                "steps": steps,
                "out": str(out),
            },
            lambda progress: None,
        )
        assert done is not None  # nobody interrupts it
        return Trained(read(out, self.manifest), done["num_examples"], done["metrics"]["loss"])

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        found = self._silo(silo).evaluate(
            {
                "do": "evaluate",
                "cycle": cycle,
                "version": version,
                "parameters": str(self._file(parameters)),
                "split": split,
            },
            lambda progress: None,
        )
        return found["metrics"], found["num_examples"]

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        return self.evaluate(job, -1, "measure", parameters, 0, split)

    def _silo(self, number: int) -> Managed:
        """Its model and records; the one used longest ago makes room."""
        if number not in self._loaded:
            if len(self._loaded) >= LOADED:
                self._loaded.popitem(last=False)
            path = self.data[number] if number >= 0 else self.measured
            assert path is not None
            work = self.folder / f"silo-{number}"
            work.mkdir(exist_ok=True)
            data = SiloData(path, {"silo": number, "silos": len(self.data)})
            self._loaded[number] = Managed(
                self.task(), self.file, data, work, self.base, rank=self._rank(number)
            )
        self._loaded.move_to_end(number)
        return self._loaded[number]

    def _rank(self, number: int) -> int | None:
        adapter = self.file.adapter
        return (
            adapter.rank_at(self.names[number])
            if adapter is not None and self.names and number >= 0
            else None
        )

    def _file(self, parameters: Flat) -> Path:
        """The parameters as a canonical file, written when they are others than before."""
        known, path = self._base
        if known is not parameters:
            write(parameters, path)
            self._base = parameters, path
        return path
