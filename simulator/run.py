"""One run from files: job folders and a scenario in, what happened out."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile, JobTerms
from anabranch.wire.canonical import sha256
from silo_agent.training.archive import pack
from silo_agent.training.task import load_task
from simulator.dealing import deal
from simulator.engine import Outcome, Revives, Run, Trained, Trainer, silo_names
from simulator.flat import Flat
from simulator.memory import Memory, Planned
from simulator.rows import Rows
from simulator.scenario import Scenario
from simulator.trainers import SyntheticTrainer

if TYPE_CHECKING:
    from simulator.managed import ManagedTrainer
    from simulator.rooms import Rooms


@dataclass(frozen=True)
class Told:
    """A job as a person wrote it: its file and the folder it stands in."""

    file: JobFile
    folder: Path


@dataclass(frozen=True)
class Trainers:
    """Each job's own."""

    of: Mapping[str, Trainer]

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained:
        return self.of[job].train(job, silo, cycle, base, version, steps)

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        return self.of[job].evaluate(job, silo, cycle, parameters, version, split)

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        return self.of[job].measure(job, parameters, split)


@dataclass(frozen=True)
class Finished:
    scenario: Scenario
    until: float  # virtual seconds
    outcomes: Sequence[Outcome]
    rows: Rows
    seconds: float  # of this machine, preparation left out
    export: Mapping[str, bytes]  # of the audit log, by path; empty where none was kept


def play(
    jobs: Sequence[Told], scenario: Scenario, told: Callable[[float], None] = lambda now: None
) -> Finished:
    """Play one run in a scratch folder. Raises Refused for what does not fit together."""
    names = [job.file.job.name for job in jobs]
    if len(set(names)) != len(names):
        raise Refused(Reason.MALFORMED, f"jobs that run together need different names: {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="anabranch-simulate-") as scratch:
        prepared = [_prepared(job, scenario, Path(scratch) / job.file.job.name) for job in jobs]
        trainers = Trainers({planned.name: trainer for planned, trainer in prepared})
        planned, silos, rows = [one for one, _ in prepared], silo_names(scenario), Rows()
        server: Memory | Rooms
        if scenario.log:
            from simulator import rooms  # the whole server is loaded by who asks for it

            server = rooms.Rooms(planned, silos, rows, Path(scratch), scenario.seed)
        else:
            server = Memory(planned, silos, rows)
        began = time.perf_counter()
        revivers = _revivers(prepared, scenario)
        run = Run(scenario, server, trainers, rows, revivers, told).play()
        took = time.perf_counter() - began
        export: dict[str, bytes] = {} if isinstance(server, Memory) else _exported(server, Path(scratch))
        return Finished(scenario, run.now, server.outcomes(), rows, took, export)


def _exported(server: "Rooms", scratch: Path) -> dict[str, bytes]:
    """The files of the audit export. The server is closed afterwards, but for reading what it holds."""
    server.export(scratch / "export")
    server.close()
    return {
        str(path.relative_to(scratch)): path.read_bytes()
        for path in sorted((scratch / "export").rglob("*"))
        if path.is_file()
    }


def _prepared(job: Told, scenario: Scenario, scratch: Path) -> tuple[Planned, Trainer]:
    silos, seed = len(scenario.profiles()), scenario.seed
    trainer: SyntheticTrainer | ManagedTrainer
    if scenario.synthetic is not None:
        trainer, archive = SyntheticTrainer(scenario.synthetic, seed), b""
    else:
        trainer, archive = _managed(job, scenario, silos, scratch), pack(job.folder)
    terms = JobTerms(
        file=job.file,
        archive_sha256=sha256(archive),
        initial_sha256=trainer.initial.digest(),
        manifest_sha256=trainer.manifest.digest(),
    )
    return Planned(job.file.job.name, terms, trainer.manifest, archive, trainer.initial), trainer


def _revivers(prepared: Sequence[tuple[Planned, Trainer]], scenario: Scenario) -> dict[str, Revives]:
    """Of the jobs that ask for one, and whose task says what its inputs are."""
    wanted = [(planned, trainer) for planned, trainer in prepared if planned.terms.file.revival is not None]
    if not wanted:
        return {}
    from simulator.managed import ManagedTrainer
    from simulator.reviving import reviver_of

    found: dict[str, Revives] = {}
    for planned, trainer in wanted:
        settings = planned.terms.file.revival
        if settings is None or not isinstance(trainer, ManagedTrainer):
            continue
        reviver = reviver_of(trainer, settings, scenario.seed, scenario.revival_seconds)
        if reviver is not None:
            found[planned.name] = reviver
    return found


def _managed(job: Told, scenario: Scenario, silos: int, scratch: Path) -> "ManagedTrainer":
    from simulator.managed import ManagedTrainer  # torch is loaded by who trains

    wanted = job.file.job
    if not wanted.managed:
        raise Refused(
            Reason.MALFORMED,
            f"{wanted.task} brings its own loop; a simulation runs managed tasks (task.py:Class) in its own process",
        )
    if wanted.data not in scenario.data:
        raise Refused(
            Reason.MALFORMED,
            f"the job reads the binding {wanted.data!r}; the scenario has no [data.{wanted.data}]",
        )
    data = scenario.data[wanted.data]
    measured = None
    if scenario.measure is not None:
        which = scenario.measure.records
        measured = data.test if which == "test" else data.validation
        if measured is None:
            raise Refused(
                Reason.MALFORMED, f"[measure] needs [data.{wanted.data}] {which}: records no silo has"
            )
    # The job's seed makes the model and the batches, the scenario's the deal: another run is another draw of both.
    file = job.file.model_copy(
        update={"job": wanted.model_copy(update={"seed": wanted.seed + scenario.seed})}
    )
    task = load_task(job.folder, wanted.task, wanted.params)
    paths = deal(data, silos, scenario.seed, scratch / "data")
    return ManagedTrainer(task, file, paths, measured, scratch)
