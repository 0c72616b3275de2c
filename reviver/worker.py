"""The reviver's daemon: claim a task, fetch what it names, have the job's process distil, send what came of it.

    claim → fetch → child → submit | skip

It holds the key and talks to the server; it neither loads torch nor runs a job's code. Killed anywhere, it claims again and
gets the same task while there is time; nothing but its identity and its view of the log has to survive.
"""

import hashlib
import random
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import structlog
from rfc8785 import dumps

from anabranch.errors import Conflict, Corrupt, Reason, Refused, Unavailable
from anabranch.link import Packing
from anabranch.terms import JobTerms
from anabranch.wire import limits
from anabranch.wire.tensors import Manifest, TensorFile
from reviver.child import Child
from reviver.client import Claimed, Client, Ended, Task, Teacher
from reviver.device import Device
from reviver.files import JobFiles
from silo_agent import identity, receipts, renew
from silo_agent.config import Home
from silo_agent.messages import Wait
from silo_agent.receipts import LogView, Untrusted
from silo_agent.submit import NOT_ABOUT_THE_UPDATE as ABOUT_US
from silo_agent.trainer import Stopped, TaskFailed
from silo_agent.training.channel import Rested, Revive, Revived, Teaching
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher

CHILDREN = 4  # jobs whose processes live at once; the one used longest ago ends
LONGEST_WAIT = 30.0  # seconds between two claims
RETRY_SECONDS = 2.0  # while the server is away
RENEW_AGAIN = 60.0  # seconds after a renewal that failed
SHARE = 0.9  # of the time left that the job's process may take; the rest is for what it made
REST = 60.0  # seconds without a task of a job that does not pay
FAULT, LONGEST_FAULT = 5.0, 600.0  # seconds after a job's first failure, doubled for each one more
TASK_OVER = frozenset({Reason.BAD_LEASE, Reason.NOT_FOUND})  # it was withdrawn, or its time is up
RECENT = 8  # revivals whose duration counts

logger = structlog.get_logger("reviver")


@dataclass
class _Job:
    child: Child
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # of its revivals


class Worker:
    """For one thread; `stopping` may be set by any. `devices`: jobs compute on the first, and where it fails one, that
    job on the next.
    """

    def __init__(
        self,
        home: Home,
        client: Client,
        log: LogView,
        launcher: Launcher,
        isolated: Isolation,
        devices: Sequence[Device],
        stopping: threading.Event,
        bases: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """`bases`: folders of base models by the name that jobs give them."""
        self._home, self._client, self._log = home, client, log
        self._launcher, self._isolated, self._stopping = launcher, isolated, stopping
        self._devices, self._bases = devices, bases
        self._jobs: dict[str, _Job] = {}  # the one used last comes last
        self._resting: dict[str, float] = {}  # job → until when, in monotonic seconds
        self._faults: dict[str, int] = {}  # job → failures in a row
        self._away = False  # the server, when it was asked last
        self._renew_at = self._due()

    def run(self) -> None:
        """Until `stopping`. Raises Refused when the server does not know us any more, Untrusted, Corrupt."""
        for left in (self._home.path / "jobs").glob("*"):
            _clear(left)  # a process of ours that was killed may have been at work
        try:
            while not self._stopping.is_set():
                self._stopping.wait(self._turn())
        except Stopped:
            pass
        finally:
            for job in self._jobs.values():
                job.child.stop()

    def _turn(self) -> float:
        """One claim and what follows; seconds until the next."""
        self._renew()
        try:
            claimed = self._client.claim(list(self._jobs), self._rests())
            if self._away:
                logger.info("the server is back")
            self._away = False
            self._forget(claimed)
            if isinstance(claimed.turn, Wait):
                return min(claimed.turn.seconds, LONGEST_WAIT)
            self._work(claimed.turn)
        except Stopped:
            raise
        except (Unavailable, Conflict) as error:
            if not self._away:
                logger.warning("the server does not answer; trying again", error=str(error))
            self._away = True
            return RETRY_SECONDS
        except Refused as error:
            if isinstance(error, Untrusted) or error.code in ABOUT_US:
                raise
            logger.warning("the server refused", reason=error.code.value, error=str(error))
            return RETRY_SECONDS
        return 0.0

    def _forget(self, claimed: Claimed) -> None:
        """A process that holds what it may not hold any more ends: so it is gone for sure."""
        for name, job in list(self._jobs.items()):
            if name not in claimed.permitted:
                self._drop(name)
                _clear(self._home.job(name))
            elif gone := job.child.known.keys() - claimed.permitted[name]:
                logger.info("forgotten", job=name, silos=sorted(gone))
                job.child.stop()
                _clear(self._home.job(name))

    def _work(self, task: Task) -> None:
        until = time.monotonic() + task.seconds_left
        logger.info("task", job=task.job, version=task.version, teachers=len(task.teachers))
        try:
            self._revive(task, until)
            self._faults.pop(task.job, None)
        except Refused as error:
            if isinstance(error, Untrusted) or error.code in ABOUT_US | TASK_OVER:
                raise
            if task.job in self._jobs:
                self._jobs[task.job].child.stop()  # its successor begins anew, in a folder of its own
                _clear(self._home.job(task.job))
                if isinstance(error, TaskFailed):
                    self._next_device(task.job)
            faults = self._faults[task.job] = self._faults.get(task.job, 0) + 1
            self._rest(task.job, min(LONGEST_FAULT, FAULT * 2.0 ** (faults - 1)))
            logger.warning("no result", job=task.job, version=task.version, error=str(error))
            self._skip(task, "failed", error.exception if isinstance(error, TaskFailed) else "Refused")

    def _revive(self, task: Task, until: float) -> None:
        """Raises TaskFailed, Stopped, Unavailable; Refused for a file that is not what the task says, or not given."""
        files = JobFiles(self._client, self._home.job(task.job))
        terms, manifest = files.job(task)
        if task.job not in self._jobs:
            self._make_room()
            place, first = files.directory, self._devices[0]
            base = self._bases.get(terms.file.job.base or "")
            child = Child(self._launcher, place, terms, self._isolated, first, self._stopping, base)
            self._jobs[task.job] = _Job(child)
        job = self._jobs[task.job] = self._jobs.pop(task.job)
        patience = time.monotonic() + SHARE * (until - time.monotonic())
        job.child.start(patience)
        begun = time.monotonic()
        own = {task.terms, terms.manifest_sha256, terms.archive_sha256, task.head}
        new = [one for one in task.teachers if job.child.known.get(one.silo) != one.update]
        files.keep(own | {digest for one in new for digest in (one.base, one.delta)})
        # Cut short here: the same task resumes what has come.
        request = _request(task, new, job, files, terms, manifest)
        try:
            answer = job.child.revive(request, patience)
        finally:
            files.keep(own)
        job.child.known.update({one.silo: one.update for one in task.teachers})
        if answer["is"] == "rested":
            self._rested(task, job, answer)
            return
        seconds = time.monotonic() - begun
        job.seconds.append(seconds)
        report = _report(answer, terms.file.job.seed, job.child.device, seconds)
        self._deliver(task, Path(request["out"]), manifest, report, until)

    def _next_device(self, name: str) -> None:
        """After a failure, whoever is to blame: what a GPU cannot do, or has no memory for, goes on elsewhere."""
        job = self._jobs[name]
        at = self._devices.index(job.child.device)
        if at + 1 < len(self._devices):
            failed, job.child.device = job.child.device, self._devices[at + 1]
            job.seconds.clear()
            logger.warning(
                "another device for a job", job=name, failed=str(failed), now=str(job.child.device)
            )

    def _rested(self, task: Task, job: _Job, answer: Rested) -> None:
        reason, why = answer["reason"], answer.get("why", "")
        if reason == "unsupported":
            self._rest(task.job, float("inf"))
            self._drop(task.job)
        elif reason in ("not_worth", "failed"):
            job.seconds.clear()  # measured again after the rest
            self._rest(task.job, REST)
        logger.info("no result", job=task.job, version=task.version, reason=reason, why=why)
        self._skip(task, reason, why)

    def _deliver(self, task: Task, path: Path, manifest: Manifest, report: bytes, until: float) -> None:
        """Sent again while the server is away and there is time. Raises TaskFailed for a file it does not take."""
        try:
            with TensorFile(path, manifest) as file:
                found = hashlib.sha256()
                for piece in _pieces(file):
                    found.update(piece)
                ended = self._submitted(task, found.hexdigest(), report, file, until)
        except (Corrupt, FileNotFoundError) as error:
            raise TaskFailed(Reason.TASK_GARBAGE, "NoResult") from error
        except Refused as error:
            if error.code in ABOUT_US:
                raise
            logger.warning("the result was not taken", job=task.job, error=str(error))
            raise TaskFailed(Reason.TASK_GARBAGE, "NoResult") from error
        if ended.reason:
            logger.warning("too late", job=task.job, version=task.version, reason=ended.reason)
        else:
            logger.info("revived", job=task.job, version=task.version, report=report.decode())
        self._proven(task, ended)

    def _submitted(self, task: Task, digest: str, report: bytes, file: TensorFile, until: float) -> Ended:
        while True:
            try:
                return self._client.submit(task.id, digest, report, _pieces(file))
            except (Unavailable, Conflict) as error:
                if time.monotonic() > until or self._stopping.wait(RETRY_SECONDS):
                    raise
                logger.warning("the result is sent again", job=task.job, error=str(error))

    def _skip(self, task: Task, reason: str, why: str) -> None:
        self._proven(task, self._client.skip(task.id, reason, why))

    def _proven(self, task: Task, ended: Ended) -> None:
        """Raises Untrusted when the server cannot prove what it says of the task."""
        kind = "revival.skipped" if ended.reason else "revival.performed"
        receipts.require(self._log.accept(ended.receipt), kind, job=task.job, revival=task.id)

    def _rest(self, job: str, seconds: float) -> None:
        self._resting[job] = time.monotonic() + seconds

    def _rests(self) -> list[str]:
        now = time.monotonic()
        self._resting = {job: until for job, until in self._resting.items() if until > now}
        return list(self._resting)[-limits.JOBS :]

    def _make_room(self) -> None:
        while len(self._jobs) >= CHILDREN:
            self._drop(next(iter(self._jobs)))

    def _drop(self, name: str) -> None:
        self._jobs.pop(name).child.stop()

    def _due(self) -> float:
        """Unix seconds. At once when a renewal was cut short: the server may hold one nobody received."""
        if (self._home.identity / identity.NEXT_KEY).exists():
            return 0.0
        spread = random.uniform(-1, 1)  # noqa: S311 - spreads load, guards nothing
        return renew.due(identity.load_tls(self._home.identity), spread)

    def _renew(self) -> None:
        if time.time() < self._renew_at:
            return
        try:
            renew.renew(self._home.identity, self._client, self._log, time.time())
        except Untrusted:
            raise
        except (Refused, Unavailable, Conflict) as error:
            logger.warning("the certificate could not be renewed; trying again", error=str(error))
            self._renew_at = time.time() + RENEW_AGAIN
            return
        self._renew_at = self._due()
        logger.info("certificate renewed")


def _request(
    task: Task, new: list[Teacher], job: _Job, files: JobFiles, terms: JobTerms, manifest: Manifest
) -> Revive:
    """With all files fetched."""

    def fetch(digest: str, packing: Packing | None = None) -> str:
        return str(files.tensors(task.id, digest, manifest, packing))

    def taught(one: Teacher) -> Teaching:
        """As the silo had it: its model is what it made of the view it was given."""
        base = fetch(one.base, terms.file.download(one.version, one.silo))
        delta = fetch(one.delta, terms.file.upload(one.version, one.silo))
        return {"silo": one.silo, "base": base, "delta": delta}

    return {
        "do": "revive",
        "cycle": task.id,
        "version": task.version,
        "head": fetch(task.head),
        "teachers": [taught(one) for one in new],
        "seconds": median(job.seconds) if job.seconds else 0.0,
        "task_seconds": task.task_seconds,
        "out": str(files.directory / "work" / "distilled.safetensors"),
    }


def _clear(folder: Path) -> None:
    """What a job's process was given and wrote; its log stays."""
    for part in ("archive", "models", "work"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _report(answer: Revived, seed: int, device: Device, seconds: float) -> bytes:
    report: dict[str, Any] = {
        "seed": seed,
        "device": str(device),
        "libraries": dict(device.libraries),
        "seconds": seconds,
        "agreement_before": answer.get("before"),
        "agreement_after": answer.get("after"),
        "accuracy_before": answer.get("accuracy_before"),
        "accuracy_after": answer.get("accuracy_after"),
    }
    return dumps({key: value for key, value in report.items() if value is not None})


def _pieces(file: TensorFile) -> Iterator[bytes]:
    size = file.manifest.file_bytes
    for start in range(0, size, limits.CHUNK):
        piece = bytearray(min(limits.CHUNK, size - start))
        file.read_bytes(start, memoryview(piece))
        yield bytes(piece)
