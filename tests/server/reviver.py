"""A reviver without torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from anabranch.errors import Refused
from anabranch.terms import JobTerms
from anabranch.tlog.entry import Actor, parse_entry
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.tensors import Manifest, TensorFile, write_tensors
from server.core.revival import Report
from server.reviving import Ended, RevivalTask
from server.state import records, tables
from server.state.database import Reader
from tests.server.harness import FEDERATION, MANIFEST, FakeSilo, Server

SOME = "[silos]\nmin = 2\n[aggregation]\nbuffer = 1\n[aggregation.server_optimizer]\nlr = 0.5\n[evaluation]\nevery = 50\n"
REVIVED = SOME + "[revival]\nfreeze = 0\nwarmup = 0\nlate = 2\ngain = 0.5\n"
NAME = "r"
REVIVER = Actor(id=f"spiffe://{FEDERATION}/reviver/{NAME}", auth="mtls", cert_sha256="1" * 64)
REPORT = Report(
    seed=7,
    device="cpu",
    libraries={"torch": "2.13.0"},
    seconds=1.5,
    agreement_before=0.5,
    agreement_after=0.75,
    accuracy_before=0.25,
    accuracy_after=0.375,
)


def allow(
    server: Server, silo: FakeSilo, job: str, terms: JobTerms, word: bool | None, decision: Any = "approve"
) -> None:
    """The silo's decision on a job with [revival]."""
    statement = statements.DecisionStatement(
        federation=FEDERATION,
        job=job,
        terms_sha256=terms.digest(),
        decision=decision,
        silo=silo.name,
        time=canonical.utc(server.clock()),
        revival=word,
    )
    envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), silo.approver)
    server.core.jobs.decide(silo.name, silo.actor, job, envelope.encode())


def task_of(server: Server, job: str) -> RevivalTask:
    task = server.core.reviving.claim(NAME)
    assert isinstance(task, RevivalTask), task
    return task


def revive(server: Server, task: RevivalTask, value: float) -> Ended:
    """Its result is `value`, everywhere."""
    path = server.directory / "result.safetensors"
    write_tensors(path, MANIFEST, {s.name: np.full(s.shape, value, np.float32) for s in MANIFEST.specs})
    return submit(server, task, path)


def distil(server: Server, task: RevivalTask, manifest: Manifest) -> Path:
    """The mean of the teachers − the head."""

    def read(digest: str, name: str) -> NDArray[np.float32]:
        with TensorFile(server.core.reviving.file(NAME, task.id, digest), manifest) as file:
            spec = next(one for one in manifest.specs if one.name == name)
            out = np.empty(spec.elements, np.float32)
            file.read(name, 0, spec.elements, out)
            return out.reshape(spec.shape)

    path, result = server.directory / "result.safetensors", {}
    for spec in manifest.specs:
        models = [
            read(one.base_sha256, spec.name) + read(one.delta_sha256, spec.name) for one in task.teachers
        ]
        result[spec.name] = np.mean(models, axis=0, dtype=np.float32) - read(task.head_sha256, spec.name)
    write_tensors(path, manifest, result)
    return path


def submit(server: Server, task: RevivalTask, path: Path) -> Ended:
    data, room = path.read_bytes(), server.core.reviving
    file = room.receive(NAME, task.id, canonical.sha256(data))
    try:
        file.append(data)
    except Refused:
        file.discard()
        raise
    return room.submit(NAME, REVIVER, task.id, file, REPORT)


def begin(
    server: Server, text: str = REVIVED, teaching: str = "ab", silent: str = ""
) -> tuple[str, JobTerms, list[FakeSilo]]:
    """A running job; `teaching` silos allow their models to teach, `silent` ones do not."""
    job, terms = server.submit(text)
    silos = [server.enrol_once(name) for name in teaching + silent]
    for silo in silos:
        allow(server, silo, job, terms, silo.name in teaching)
    return job, terms, silos


def publish(server: Server, job: str, terms: JobTerms, *given: tuple[FakeSilo, float]) -> None:
    for silo, value in given:
        assert server.send(silo, job, terms, value).reason == ""
        assert server.core.aggregation.advance(job)


def logged(server: Server, kind: type) -> list[Any]:
    with server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        entries = [parse_entry(bytes(data)) for data in rows]
    return [entry.detail for entry in entries if isinstance(entry.detail, kind)]


def status_of(reader: Reader, task: str) -> tuple[str, str]:
    with reader.connect() as connection:
        row = connection.execute(select(tables.revivals).where(tables.revivals.c.id == task)).one()
        return row.status, row.reason


def weights(server: Server, job: str, version: int) -> float:
    """The value of every weight: all tensors of these tests are constant."""
    with server.core.reader.connect() as connection:
        digest = records.version_row(connection, job, version).parameters
    with TensorFile(server.core.blobs.require(digest), MANIFEST) as file:
        out = np.empty(12, np.float32)
        file.read("layer.weight", 0, 12, out)
    assert np.unique(out).size == 1
    return float(out[0])
