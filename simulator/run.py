"""One run from files: job folders and a scenario in, what happened out."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile, JobTerms
from anabranch.wire.canonical import sha256
from server.core.allocation import Allocation
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
    like: Mapping[str, Any] | None  # how it compares with the recording whose order it took


def play(
    jobs: Sequence[Told],
    scenario: Scenario,
    told: Callable[[float], None] = lambda now: None,
    like: Path | None = None,
) -> Finished:
    """Play one run in a scratch folder, in the order of the export `like` where one is given.

    Raises Refused for what does not fit together.
    """
    if like is not None:
        return _play_like(jobs, scenario, told, like)
    names = [job.file.job.name for job in jobs]
    if len(set(names)) != len(names):
        raise Refused(Reason.MALFORMED, f"jobs that run together need different names: {', '.join(names)}")
    # Nobody waits for a disk in virtual time, and nobody goes on where a run that was killed stood.
    with durable.forgettable(), tempfile.TemporaryDirectory(prefix="anabranch-simulate-") as scratch:
        ready = [prepared(job, scenario, Path(scratch) / job.file.job.name) for job in jobs]
        trainers = Trainers({planned.name: trainer for planned, trainer in ready})
        planned, silos, rows = [one for one, _ in ready], silo_names(scenario), Rows()
        allocation = Allocation(scenario.allocation, scenario.shares)
        server: Memory | Rooms
        if scenario.log:
            from simulator import rooms  # the whole server is loaded by who asks for it

            server = rooms.Rooms(planned, silos, rows, Path(scratch), scenario.seed, allocation)
        else:
            server = Memory(planned, silos, rows, allocation)
        began = time.perf_counter()
        revivers = _revivers(ready, scenario)
        run = Run(scenario, server, trainers, rows, revivers, told).play()
        took = time.perf_counter() - began
        export: dict[str, bytes] = {} if isinstance(server, Memory) else _exported(server, Path(scratch))
        return Finished(scenario, run.now, server.outcomes(), rows, took, export, None)


def _play_like(
    jobs: Sequence[Told], scenario: Scenario, told: Callable[[float], None], like: Path
) -> Finished:
    from simulator.playback import Playback  # the auditor is loaded by who asks for it
    from simulator.recording import read_recording

    if len(jobs) != 1 or scenario.log:
        raise Refused(Reason.MALFORMED, "like an export, one job is simulated at a time, and without `log`")
    name = jobs[0].file.job.name
    recording = read_recording(like, name)
    scenario = scenario.model_copy(update={"horizon": f"{math.ceil(recording.seconds)}s"})
    with durable.forgettable(), tempfile.TemporaryDirectory(prefix="anabranch-simulate-") as scratch:
        planned, trainer = prepared(jobs[0], scenario, Path(scratch), recording.silos)
        rows = Rows()
        server = Memory([planned], list(recording.silos), rows)
        run = Run(scenario, server, trainer, rows, told=told)
        same = planned.terms.digest() == recording.terms_sha256
        if same and jobs[0].file.aggregation.strategy == "fedcompass":
            raise Refused(
                Reason.MALFORMED,
                "fedcompass schedules by times finer than the log's, so its run cannot be played again byte for byte; "
                "change the terms to see what another strategy makes of these arrivals",
            )
        playback = Playback(recording, run, name, same)
        began = time.perf_counter()
        playback.play()
        took = time.perf_counter() - began
    return Finished(scenario, run.now, server.outcomes(), rows, took, {}, playback.found())


def _exported(server: "Rooms", scratch: Path) -> dict[str, bytes]:
    """The files of the audit export. The server is closed afterwards, but for reading what it holds."""
    server.export(scratch / "export")
    server.close()
    return {
        str(path.relative_to(scratch)): path.read_bytes()
        for path in sorted((scratch / "export").rglob("*"))
        if path.is_file()
    }


def prepared(
    job: Told, scenario: Scenario, scratch: Path, silos: Sequence[str] = ()
) -> tuple[Planned, Trainer]:
    """The job with version 0 of its model, and its silos with their records. Raises Refused for what does not fit.

    `silos`: their names, where they are not the scenario's.
    """
    names, seed = silos or silo_names(scenario), scenario.seed
    trainer: SyntheticTrainer | ManagedTrainer
    if scenario.synthetic is not None:
        trainer, archive = SyntheticTrainer(scenario.synthetic, seed), b""
    else:
        trainer, archive = _managed(job, scenario, names, scratch), pack(job.folder)
    terms = JobTerms(
        file=job.file,
        archive_sha256=sha256(archive),
        initial_sha256=trainer.initial.digest(),
        manifest_sha256=trainer.manifest.digest(),
        base_sha256=trainer.base_sha256,
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


def _managed(job: Told, scenario: Scenario, names: Sequence[str], scratch: Path) -> "ManagedTrainer":
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
    if wanted.base is not None and wanted.base not in scenario.models:
        raise Refused(
            Reason.MALFORMED,
            f"the job adapts the base model {wanted.base!r}; the scenario has no [models.{wanted.base}]",
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
    task = partial(load_task, job.folder, wanted.task, wanted.params)
    paths = deal(data, len(names), scenario.seed, scratch / "data")
    base = scenario.models[wanted.base].path if wanted.base is not None else None
    return ManagedTrainer(task, file, paths, measured, scratch, base, names)
