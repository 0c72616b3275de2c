"""The real server in virtual time: its rooms, tables, signatures and log.

Silos enrol, approve, sign, and prove what they are told, as agents do; what is missing is the network between them, the
threads, and waiting for the disk. The log can be exported afterwards, and an auditor verifies and replays it like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anabranch.errors import Misuse, Refused
from anabranch.link import Packing
from anabranch.terms import JobTerms, seconds
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.entry import Actor, Entry
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt
from anabranch.wire import canonical, limits
from server import setup
from server.aggregation import closing_of
from server.allow_list import AllowList
from server.audit.export import Exported, export
from server.config import new_config
from server.core.allocation import TURNS, Allocation
from server.core.buffer import StillOpen
from server.core.revival import Ending, Report
from server.core.turn import due_version
from server.intake import Decided, Upload
from server.scheduling import Lease, Wait, failing
from server.sessions import Sessions
from server.startup import World
from server.state import records
from server.state.writer import Logged
from server.step import Step
from simulator import sqlite
from simulator.agents import FEDERATION, Agent, Held, enrolled
from simulator.chance import generator
from simulator.engine import START, Outcome, RevivalTask, Task, Teaching, Trained
from simulator.flat import Flat, read
from simulator.link import arrived, update_travelled
from simulator.memory import Planned
from simulator.models import Models
from simulator.rows import Rows

CHANCE = 4  # what the generator of (seed, this) draws
UNMEASURED = Report(seed=0, device="cpu", libraries={}, seconds=0)  # of a revival: its time is virtual
REVIVER = "simulated"
REVIVING = Actor(id=f"spiffe://{FEDERATION}/reviver/{REVIVER}", auth="mtls", cert_sha256="0" * 64)
OWNER = Actor(id=f"spiffe://{FEDERATION}/admin/owner", auth="mtls", cert_sha256="0" * 64)


class Rooms:
    """As `engine.Server`. `close` when the run is over."""

    def __init__(
        self,
        planned: Sequence[Planned],
        silos: Sequence[str],
        rows: Rows,
        folder: Path,
        seed: int,
        allocation: Allocation = TURNS,
    ) -> None:
        """Makes a federation in `folder`, enrols every silo and has each approve every job."""
        self.now, self.rows = 0.0, rows
        self._chance = generator(seed, CHANCE)
        self._next: list[bytes] = []
        self._jobs: dict[str, Held] = {}
        self._names: dict[str, str] = {}  # job ids → names
        self._heads: dict[str, int] = {}
        self._remainders: dict[tuple[str, str], Flat] = {}  # silo, job → what its accepted updates left out
        self._models = Models(lambda: self.core.blobs)
        self._seen: tuple[str, Checkpoint] | None = None  # the note that was verified last, and what it says
        self._status: dict[str, str] = {}
        self._ended: dict[str, float] = {}
        self.directory = folder / "server"
        world = World(lambda: START + self.now, self._entropy)
        config = new_config(FEDERATION, "localhost", 7443, 7444, 7445)
        self._config = config.model_copy(
            update={"allocation": allocation.rule, "shares": dict(allocation.shares)}
        )
        self._info = setup.create_federation(self.directory, self._config, world)
        self._verifier = NoteVerifier.from_vkey(self._info.log_vkey)
        store: Any = sqlite.Alone(self.directory / "state" / "state.db")
        world = replace(world, open_engine=lambda path, begin: store)
        sessions = Sessions(world.clock)
        self.core, authority = setup.open_federation(
            self.directory, self._config, sessions, world, self._watch
        )
        self.core.writer.start_inline()  # nor has aggregation a thread here: the run says when
        membership = setup.open_membership(
            self.directory,
            self._config,
            self.core,
            authority,
            AllowList(),
            sessions,
            setup.NoStreams(),
            world,
        )
        self._agents = {name: enrolled(membership, OWNER, name) for name in silos}
        for one in planned:
            self._offer(one)

    def close(self) -> None:
        self.core.close()

    def export(self, out: Path) -> Exported:
        """The audit export, with what silos measured."""
        return export(
            self.core.reader, self.core.blobs, self._info.log_vkey, self._info.ca_pem.encode(), out, True
        )

    @property
    def vkey(self) -> str:
        return self._info.log_vkey

    # --- as the run sees it ------------------------------------------------------------------------------------------

    def at(self, now: float) -> None:
        self.now = now

    def running(self) -> list[str]:
        return [name for name in self._jobs if self._status.get(name) == "running"]

    def head(self, job: str) -> int:
        return self._heads[job]

    def status(self, job: str) -> str:
        return self._status[job]

    def outcomes(self) -> list[Outcome]:
        return [
            Outcome(
                job=name,
                terms=held.planned.terms,
                file_bytes=held.planned.manifest.file_bytes,
                status=self._status[name],
                ended_at=self._ended.get(name),
                parameters_sha256=self.parameters(name, self._heads[name]).digest(),
            )
            for name, held in self._jobs.items()
        ]

    def parameters(self, job: str, version: int) -> Flat:
        held = self._jobs[job]
        return self._models.parameters(held.id, version, held.planned.manifest)

    def view(self, job: str, version: int, silo: str) -> Flat:
        held = self._jobs[job]
        return self._models.view(held.id, version, silo, held.planned.terms, held.planned.manifest)

    def average(self, job: str) -> Flat | None:
        with self.core.reader.connect() as connection:
            digest = records.version_row(connection, self._jobs[job].id, self._heads[job]).ema
        manifest = self._jobs[job].planned.manifest
        return read(self.core.blobs.require(digest), manifest) if digest else None

    def next_task(self, silo: str, lease: str, nonce: str) -> Task | float | None:
        self._next = [bytes.fromhex(lease), bytes.fromhex(nonce)]
        found = self.core.scheduling.next_task(silo, [held.id for held in self._jobs.values()])
        self._next = []
        if not isinstance(found, Lease):
            return self._backing_off(silo)
        self._proven(found.receipt, "lease.issued")
        name = self._names[found.job]
        whole = self._jobs[name].planned.terms.file.training.local_steps
        return Task(
            found.id,
            found.nonce,
            name,
            found.kind,
            found.view.version,
            found.split,
            found.local_steps,
            self.now,
            found.local_steps / whole if found.kind == "train" else 1.0,
        )

    def _backing_off(self, silo: str) -> float | None:
        """When the silo may try again what failed, if that is what it waits for."""
        with self.core.reader.connect() as connection:
            rows = [records.job_row(connection, self._jobs[name].id) for name in self.running()]
            until = [failing(connection, silo, row, START + self.now).until - START for row in rows]
        return min((moment for moment in until if moment > self.now), default=None)

    def submit(self, silo: str, task: Task, trained: Trained) -> None:
        agent, held = self._agents[silo], self._jobs[task.job]
        terms, remainder = held.planned.terms, self._remainders.get((silo, held.id))
        packing = terms.file.upload(task.version, silo)
        sent = update_travelled(trained.delta, packing, terms.file.feedback, remainder)
        data = sent.data or trained.delta.encode()
        moved = self._models.view_bytes(held.id, task.version, silo, terms), sent.bytes
        view = self._models.view_digest(held.id, task.version, silo, terms)
        envelope = agent.update(held, task, view, data, trained.examples, self._newest())
        try:
            decided = self._sent(agent, task.lease, envelope, data)
        except Refused as refusal:
            self.rows.received(self.now, silo, task, trained.loss, refusal.code, *moved)
            return
        self._proven(decided.receipt, "update.refused" if decided.reason else "update.received")
        if sent.remainder is not None and not decided.reason:
            self._remainders[silo, held.id] = sent.remainder
        self.rows.received(self.now, silo, task, trained.loss, decided.reason, *moved)

    def _sent(self, agent: Agent, update: str, envelope: bytes, data: bytes) -> Decided:
        upload = self.core.intake.open(agent.name, agent.actor, update, envelope, 0)
        if not isinstance(upload, Upload):
            return upload
        for start in range(0, len(data), limits.CHUNK):
            upload.append(data[start : start + limits.CHUNK])
        return upload.finish()

    def evaluated(self, silo: str, task: Task, metrics: Mapping[str, float], records: int) -> None:
        agent, held = self._agents[silo], self._jobs[task.job]
        view = self._models.view_digest(held.id, task.version, silo, held.planned.terms)
        envelope = agent.evaluation(held, task, view, metrics, records)
        decided = self.core.intake.evaluation(silo, agent.actor, task.lease, envelope)
        self._proven(decided.receipt, "model.evaluated")

    def claim(self, job: str) -> RevivalTask | None:
        room, held = self.core.reviving, self._jobs[job]
        others = [one.id for one in self._jobs.values() if one.id != held.id]
        found = room.claim(REVIVER, resting=others)
        if isinstance(found, Wait):
            return None
        task, manifest = found, held.planned.manifest

        def taken(digest: str, packing: Packing | None = None) -> Flat:
            return arrived(room.file(REVIVER, task.id, digest), manifest, packing)

        file = held.planned.terms.file
        teachers = {
            one.silo: Teaching(
                one.silo,
                one.update,
                taken(one.base_sha256, file.download(one.base, one.silo)),
                taken(one.delta_sha256, file.upload(one.base, one.silo)),
            )
            for one in task.teachers
        }
        return RevivalTask(task.id, job, task.version, taken(task.head_sha256), teachers)

    def revived(self, task: RevivalTask, result: Flat | Ending) -> None:
        room = self.core.reviving
        if isinstance(result, str):
            room.skip(REVIVER, REVIVING, task.revival, result)
            return
        data = result.encode()
        file = room.receive(REVIVER, task.revival, canonical.sha256(data))
        file.append(data)
        room.submit(REVIVER, REVIVING, task.revival, file, UNMEASURED)

    def freeze(self, job: str) -> Callable[[], None] | float | None:
        held = self._jobs[job]
        with self.core.reader.connect() as connection:
            row = records.job_row(connection, held.id)
            found = closing_of(connection, row, held.planned.terms, START + self.now)
        if isinstance(found, StillOpen):
            if _may_conclude(row, held.planned.terms):
                self.core.aggregation.conclude(held.id)
        elif (step := self.core.aggregation.freeze(held.id)) is not None:
            return partial(self._finish, step)
        moments = [found.at if isinstance(found, StillOpen) else None, self._evaluated_by(job)]
        return min((at - START for at in moments if at is not None), default=None)

    def _evaluated_by(self, job: str) -> float | None:
        """When the newest due version is waited for no longer, in unix seconds."""
        held = self._jobs[job]
        due = due_version(held.planned.terms, self._heads[job])
        if self._status[job] != "running" or due is None:
            return None
        with self.core.reader.connect() as connection:
            if due <= (records.job_row(connection, held.id).judged or 0):
                return None
            published = records.version_row(connection, held.id, due).published_at
        at = float(published) + seconds(held.planned.terms.file.aggregation.max_wait)
        return at if at > START + self.now else None

    def _finish(self, step: Step) -> None:
        self.core.aggregation.finish(step)

    # --- what it takes -----------------------------------------------------------------------------------------------

    def _entropy(self, size: int) -> bytes:
        """A lease's name and nonce are the run's to choose; the rest is drawn."""
        return self._next.pop(0) if size == 16 and self._next else self._chance.bytes(size)

    def _watch(self, entry: Logged) -> None:
        """What the log says becomes rows. Called by the writer, one entry after the other."""
        job, detail = self._names.get(entry.job or "", ""), entry.detail
        self._models.see(entry)
        if entry.type == "update.retired":
            self.rows.retired(detail["update"], detail["reason"])
        elif entry.type == "aggregation.performed":
            staleness = {one["update"]: one["staleness"] for one in detail["inputs"]}
            self.rows.published(
                self.now, job, detail["version"], detail["closed_by"], detail["absent"], staleness
            )
        elif entry.type == "model.published":
            self._heads[job] = detail["version"]
        elif entry.type.startswith("job.") and entry.type.removeprefix("job.") in (
            "completed",
            "paused",
            "aborted",
        ):
            self._status[job], self._ended[job] = entry.type.removeprefix("job."), self.now

    def _proven(self, receipt: Receipt, kind: str) -> Entry:
        """As an agent: nothing counts that the log does not prove."""
        entry, checkpoint = verify_receipt(receipt, self._verifier, self._config.log_origin)
        self._seen = receipt.checkpoint, checkpoint
        if entry.type != kind:
            raise Misuse(f"the receipt is for {entry.type}, not {kind}")
        return entry

    def _offer(self, planned: Planned) -> None:
        room = self.core.jobs
        initial = room.spool()
        initial.write_bytes(planned.initial.encode())
        terms, manifest = planned.terms.encode(), planned.manifest.encode()
        job, _ = room.submit(OWNER, terms, manifest, planned.archive, initial)
        held = Held(job, planned, planned.terms.digest())
        self._jobs[planned.name], self._names[job] = held, planned.name
        self._heads[planned.name], self._status[planned.name] = 0, "running"
        for agent in self._agents.values():
            room.decide(agent.name, agent.actor, job, agent.approval(held))

    def _newest(self) -> Checkpoint:
        """What the log says now, verified: mostly it is what was proven last."""
        note = self.core.log.checkpoint()
        if self._seen is None or self._seen[0] != note:
            self._seen = note, open_checkpoint(note, self._verifier, self._config.log_origin)
        return self._seen[1]


def _may_conclude(job: Any, terms: JobTerms) -> bool:
    """Whether a version of `job` (a row) is due that was not judged, or was the last."""
    due = due_version(terms, job.head)
    return due is not None and (due > (job.judged or 0) or job.head >= terms.file.stop.versions)
