"""An agent whose server refuses, restarts, forks its log, or has what the last process of the agent left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.errors import Reason, Refused
from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import dsse, statements
from anabranch.wire.tensors import write_tensors
from silo_agent import identity
from silo_agent.config import Home
from silo_agent.outbox import Outbox
from silo_agent.receipts import Untrusted
from tests.silo_agent.running import TRAINS, allow
from tests.silo_agent.world import MANIFEST, MemoryLog, World

Until = Callable[..., None]


def test_revoked_while_connected(
    world: World, start: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    allow(enrolled, interpreter)
    running = start()
    until(lambda: world.hellos)
    world.pushes.append(pb.ServerMessage(revoked=pb.Revoked(reason="contract ended")))
    failure = running.ended()
    assert isinstance(failure, Refused)
    assert failure.code is Reason.REVOKED_IDENTITY
    assert "contract ended" in str(failure)


def test_a_refused_identity_stops_the_agent(
    world: World, start: Any, interpreter: Path, enrolled: Home
) -> None:
    allow(enrolled, interpreter)
    world.refuse["Session"] = Refused(Reason.REVOKED_IDENTITY, "silo north was revoked")
    failure = start().ended()
    assert isinstance(failure, Refused)
    assert failure.code is Reason.REVOKED_IDENTITY


def test_the_agent_survives_a_restart_of_the_server(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    running = start()
    until(lambda: world.decided)
    port, enrolment = world.port, world.enrolment_port
    world.stop()
    world.lease("l1")
    world.serve(port=port, enrolment_port=enrolment)
    until(lambda: any(u.decided for u in world.uploads.values()))
    until(lambda: world.hellos >= 2)
    assert not running.failure


def test_a_forked_log_stops_the_agent_and_keeps_the_update(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    running = start()
    until(lambda: world.decided)
    fork = MemoryLog(key=world.log.key)
    for entry in world.log.entries[:-1]:
        fork.append_raw(entry)
    fork.append_raw(b"another last entry")
    world.log = fork
    world.lease("l1")
    failure = running.ended()
    assert isinstance(failure, Untrusted)
    assert "does not continue" in str(failure)
    (evidence,) = enrolled.evidence.iterdir()
    assert not world.uploads
    assert str(evidence) in str(start().ended())


@pytest.mark.parametrize(
    ("stored", "damaged", "offsets"), [(0, False, [0]), (40, False, [40]), (40, True, [40, 0])]
)
def test_what_the_last_process_left_is_sent_first_from_where_it_stopped(
    world: World,
    start: Any,
    job: Any,
    interpreter: Path,
    until: Until,
    enrolled: Home,
    tmp_path: Path,
    stored: int,
    damaged: bool,
    offsets: list[int],
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    made = tmp_path / "made"
    values = {spec.name: np.zeros(spec.shape, np.float32) for spec in MANIFEST.specs}
    digest = write_tensors(made, MANIFEST, values)
    box = Outbox(enrolled.outbox)
    box.adopt("u1", made, MANIFEST.file_bytes)
    statement = statements.UpdateStatement(
        update="u1",
        federation="fed.example",
        job="tiny-1",
        lease="l0",
        nonce="00" * 16,
        sequence=0,
        base_version=0,
        base_sha256="0" * 64,
        delta_sha256=digest,
        bytes=MANIFEST.file_bytes,
        terms_sha256=terms.digest(),
        manifest_sha256=terms.manifest_sha256,
        steps=4,
        release="0.1.0",
        checkpoint=statements.SeenCheckpoint(size=1, root="3" * 64),
    )
    key = identity.load(enrolled.identity).update_key
    box.put(dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), key).encode())
    from tests.silo_agent.world import Upload

    prefix = made.read_bytes()[:stored]
    world.uploads["u1"] = Upload(bytearray(b"x" + prefix[1:] if damaged else prefix))
    start()
    until(lambda: world.uploads["u1"].decided)
    until(lambda: not list(enrolled.outbox.iterdir()))
    assert world.uploads["u1"].offsets == offsets
    assert bytes(world.uploads["u1"].data) == made.read_bytes()


def test_an_update_the_server_will_not_take_is_set_aside_and_work_goes_on(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    terms = world.offer(job(TRAINS))
    allow(enrolled, interpreter, terms.digest())
    world.refuse["Submit"] = Refused(Reason.BAD_LEASE, "no such lease")
    world.lease("l1")
    start()
    until(
        lambda: (
            (enrolled.path / "refused").exists() and list((enrolled.path / "refused").glob("*/refusal.json"))
        )
    )
    world.done("l1")
    del world.refuse["Submit"]
    world.lease("l2")
    until(lambda: any(u.decided for u in world.uploads.values()))
