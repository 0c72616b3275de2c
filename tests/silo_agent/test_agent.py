"""The running agent against a server in this process; training processes are real, without torch."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.tensors import read_tensors
from silo_agent import agent as agent_module
from silo_agent import approval, identity, worker
from silo_agent.approval import Decisions
from silo_agent.config import Home
from silo_agent.feedback import REMAINDER
from silo_agent.outbox import Outbox
from tests.silo_agent.running import (
    BABBLES,
    DIES,
    HANGS,
    NAN,
    RAISES,
    SHORT,
    SILENT,
    TRAINS,
    allow,
    receipts,
    said,
)
from tests.silo_agent.world import MANIFEST, SILO, World

Until = Callable[..., None]


def test_a_cycle_from_lease_to_receipt(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home, tmp_path: Path
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(lambda: any(u.decided for u in world.uploads.values()))
    until(lambda: not list(Outbox(enrolled.outbox).jobs()))
    assert world.decided == ["approved"]
    types = receipts(enrolled)
    assert types == ["job.approved", "lease.issued", "model.published", "update.received"]
    (upload,) = world.uploads.values()
    (tmp_path / "delta").write_bytes(upload.data)
    assert np.all(read_tensors(tmp_path / "delta", MANIFEST)["w"] == 0.5)


def test_the_statement_says_what_was_done_and_what_was_seen(
    world: World,
    start: Any,
    job: Any,
    interpreter: Path,
    until: Until,
    enrolled: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    lease = world.lease("l1")
    seen: list[bytes] = []
    real = agent_module.Client.submit
    monkeypatch.setattr(
        agent_module.Client, "submit", lambda self, u, *rest: (seen.append(rest[0]), real(self, u, *rest))[1]
    )
    start()
    until(lambda: any(u.decided for u in world.uploads.values()))
    who = identity.load(enrolled.identity)
    public = who.update_key.public_key().public_bytes_raw()
    payload = dsse.verify(dsse.parse_envelope(seen[0]), public, statements.PAYLOAD_TYPE)
    statement = statements.parse_update(payload)
    (upload,) = world.uploads.values()
    assert statement.delta_sha256 == canonical.sha256(bytes(upload.data))
    assert (statement.lease, statement.nonce, statement.sequence) == ("l1", lease.nonce, 0)
    assert (statement.base_version, statement.base_sha256) == (0, lease.view.digest)
    assert (statement.terms_sha256, statement.manifest_sha256) == (terms.digest(), terms.manifest_sha256)
    assert statement.num_examples is None
    assert statement.steps == 4
    assert 0 < statement.checkpoint.size <= len(world.log.entries)


def test_an_evaluation(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1", "evaluate")
    start()
    until(
        lambda: (
            (enrolled.job("tiny-1") / "receipts.jsonl").exists() and "model.evaluated" in receipts(enrolled)
        )
    )


@pytest.mark.parametrize(
    ("code", "reason", "exception", "line"),
    [
        (RAISES, "task_failed", "ValueError", "task.py:2"),
        (DIES, "task_failed", "ProcessEnded", ""),
        (NAN, "task_garbage", "nonfinite", ""),
        (SHORT, "task_garbage", "malformed", ""),
        (SILENT, "task_garbage", "NoUpdate", ""),
        (BABBLES, "task_garbage", "NotAMessage", ""),
    ],
)
def test_a_failing_task_tells_the_owner_little_and_harms_nobody(
    world: World,
    start: Any,
    job: Any,
    interpreter: Path,
    until: Until,
    enrolled: Home,
    code: str,
    reason: str,
    exception: str,
    line: str,
) -> None:
    terms = world.offer(job(code))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(lambda: world.released)
    (released,) = world.released
    assert (released.reason, released.exception, released.code_line) == (reason, exception, line)
    assert not world.uploads
    assert "secret" not in str(released)
    until(lambda: "lease.released" in receipts(enrolled))


def test_a_hanging_task_is_ended_with_everything_it_started(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    child = enrolled.path / "child"
    code = (
        f"import subprocess\nopen({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
        + HANGS
    )
    folder = job(code)
    terms = world.offer(folder, training="progress_timeout = '1s'")
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(lambda: world.released)
    assert (world.released[0].reason, world.released[0].exception) == ("task_hung", "NoProgress")
    pid = int(child.read_text())
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    )


def test_a_job_that_keeps_failing_is_paused(
    world: World,
    start: Any,
    job: Any,
    interpreter: Path,
    until: Until,
    enrolled: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused: list[float] = []
    real = worker.Worker._pause
    monkeypatch.setattr(
        worker.Worker, "_pause", lambda self, s: (paused.append(s), real(self, min(s, 0.01)))[1]
    )
    terms = world.offer(job(RAISES))
    allow(enrolled, interpreter, terms.digest())
    start()
    for number in range(5):
        world.lease(f"l{number}")
        until(lambda number=number: len(world.released) == number + 1)
    until(lambda: [p for p in paused if p in worker.PAUSES][:3] == [0.07, 0.09, 0.09])
    assert list(zip(worker.pauses_after(3), range(3), strict=False)) == [(0.07, 0), (0.09, 1), (0.09, 2)]


def test_nothing_runs_without_approval(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    world.offer(job(TRAINS))
    allow(enrolled, interpreter)
    world.lease("l1")
    start()
    until(lambda: world.hellos)
    time.sleep(0.5)
    assert not world.decided
    assert not world.uploads
    assert not (enrolled.job("tiny-1") / "archive").exists()


def test_a_person_approves_and_withdraws_while_the_agent_runs(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter)
    start()
    decisions = Decisions(enrolled.decisions)
    decisions.record(terms.digest(), "tiny-1", "approve")
    world.lease("l1")
    until(lambda: world.uploads)
    until(lambda: not world.leases)
    decisions.record(terms.digest(), "tiny-1", "withdraw")
    until(lambda: world.decided == ["approved", "withdrawn"])
    world.lease("l2")
    time.sleep(0.5)
    assert [lease.id for lease in world.leases] == ["l2"]


def test_an_update_is_not_sent_before_a_withdrawal_that_came_while_the_server_was_away(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS.replace("    send({", "    import time; time.sleep(1); send({")))
    allow(enrolled, interpreter, terms.digest())
    start()
    until(lambda: world.decided == ["approved"])
    port, enrolment = world.port, world.enrolment_port
    world.lease("l1")
    until(lambda: list((enrolled.job("tiny-1") / "models").glob("*.safetensors")))
    world.stop()
    until(lambda: any(enrolled.outbox.glob("*")))
    Decisions(enrolled.decisions).record(terms.digest(), "tiny-1", "withdraw")
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("job ")])
    assert not world.uploads
    world.serve(port=port, enrolment_port=enrolment)
    until(lambda: world.uploads)
    assert world.decided == ["approved", "withdrawn"]


def rewritten(file: Path, text: str) -> None:
    """As an editor saves: nobody reads half of it."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


def test_a_mistyped_policy_stops_work_and_is_what_is_named(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home, capsys: Any
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    start()
    until(lambda: world.decided == ["approved"])
    good = enrolled.policy.read_text()
    rewritten(enrolled.policy, good.replace("[approve]", "[aprove]"))
    world.leases.clear()
    time.sleep(0.5)
    rewritten(enrolled.policy, good)
    world.lease("l1")
    until(lambda: world.uploads)
    text = said(capsys)
    assert "unknown key aprove" in text
    assert "asks for data" not in text
    assert "waits for approval" not in text


def test_code_that_is_not_the_approved_code_is_never_unpacked(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home, capsys: Any
) -> None:
    terms = world.offer(job(TRAINS))
    world.archive = world.archive.replace(b"0.5", b"9.9")
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(lambda: "code_digest_mismatch" in said(capsys))
    assert not (enrolled.job("tiny-1") / "archive").exists()
    assert not world.uploads


def test_a_lease_that_the_log_does_not_hold_is_not_worked_on(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home, capsys: Any
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1", view_sha256="f" * 64)  # logged with another model than the one it hands out
    start()
    until(lambda: "view_sha256" in said(capsys))
    assert not world.uploads


def test_a_missing_requirement_holds_the_approval_back(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home, capsys: Any
) -> None:
    terms = world.offer(job(TRAINS), extra='requires = ["no-such-thing>=2", "numpy>=1.20"]')
    allow(enrolled, interpreter, terms.digest())
    start()
    until(lambda: "no-such-thing" in said(capsys))
    assert not world.decided


def test_an_aborted_lease_is_dropped_at_once(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(HANGS))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(
        lambda: (
            (enrolled.job("tiny-1") / "training.log").exists() or (enrolled.job("tiny-1") / "models").exists()
        )
    )
    time.sleep(0.3)
    world.done("l1")
    world.pushes.append(pb.ServerMessage(abort=pb.AbortLease(lease="l1", reason="job paused")))
    world.lease("l2", "evaluate")
    until(lambda: receipts(enrolled).count("lease.issued") == 2)
    assert not world.released


def test_only_one_agent_per_directory(
    world: World, start: Any, interpreter: Path, enrolled: Home, until: Until
) -> None:
    allow(enrolled, interpreter)
    start()
    until(lambda: world.hellos)
    assert "another agent" in str(start().ended())


def test_an_ended_job_is_cleared_away_but_its_receipts_stay(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    world.lease("l1")
    start()
    until(lambda: any(u.decided for u in world.uploads.values()))
    (enrolled.job("tiny-1") / REMAINDER).touch()
    world.jobs.clear()
    world.pushes.append(pb.ServerMessage(job_changed=pb.JobChanged(job="tiny-1", status="completed")))
    gone = ("archive", "models", REMAINDER)
    until(lambda: not any((enrolled.job("tiny-1") / name).exists() for name in gone))
    assert "update.received" in receipts(enrolled)


def test_the_daemon_never_imports_torch() -> None:
    code = "import sys, silo_agent.main; sys.exit(any(m.split('.')[0] == 'torch' for m in sys.modules))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    assert approval.LOGGED.keys() == approval.STATUS.keys()
    assert SILO
