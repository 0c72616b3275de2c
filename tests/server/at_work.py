"""Silos at work over the wire: approved, leased, about to send."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from sqlalchemy import select

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms
from anabranch.tlog.entry import Actor, parse_entry
from anabranch.v1 import federation_pb2, update_pb2
from anabranch.wire import codec, status
from anabranch.wire.tensors import Manifest, TensorSpec
from server.state import tables
from tests.server.edge import Edge, Member, candidate
from tests.server.harness import FEDERATION, FakeSilo, Server

LARGE = Manifest((TensorSpec("layer.weight", (700, 1000), "trainable"),))  # 2.8 MB: three chunks


def answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error


def refusal(call: Callable[[], Any]) -> Reason:
    with pytest.raises(Refused) as refused:
        answer(call)
    return refused.value.code


def eventually(holds: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail(f"never: {what}")


@dataclass(frozen=True)
class AtWork:
    """A silo with a certificate, in a job it approved."""

    member: Member
    signer: FakeSilo
    job: str
    terms: JobTerms


def at_work(edge: Edge, silo: str = "north", manifest: Manifest = LARGE) -> AtWork:
    who = candidate()
    member = edge.enrol(silo, who)
    signer = FakeSilo(
        silo, who.update, who.approver, Actor(id=f"spiffe://{FEDERATION}/silo/{silo}/agent/0", auth="mtls")
    )
    job, terms = edge.server.submit(manifest=manifest)
    edge.server.decide(signer, job, terms)
    return AtWork(member, signer, job, terms)


@dataclass(frozen=True)
class Sending:
    """An update ready to be sent."""

    id: str
    envelope: bytes
    data: bytes

    def header(self, offset: int = 0) -> update_pb2.SubmitRequest:
        header = update_pb2.SubmitHeader(update=self.id, envelope=self.envelope, offset=offset)
        return update_pb2.SubmitRequest(header=header)

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[update_pb2.SubmitRequest]:
        for chunk in codec.chunks(self.data[start:end]):
            yield update_pb2.SubmitRequest(chunk=chunk)

    def whole(self) -> Iterator[update_pb2.SubmitRequest]:
        yield self.header()
        yield from self.chunks()


def leased(edge: Edge, silo: AtWork, manifest: Manifest = LARGE) -> Sending:
    """Over the wire: the task, the model; then an update from it."""
    reply = silo.member.federation.NextTask(federation_pb2.NextTaskRequest(jobs=[silo.job]), timeout=10)
    lease = edge.server.lease(silo.signer, silo.job)
    assert (reply.lease.id, reply.lease.view.digest) == (lease.id, lease.view.digest)
    delta = silo.signer.delta(edge.server.directory, 0.5, manifest)
    statement = silo.signer.statement(lease, silo.terms, delta)
    return Sending(statement.update, silo.signer.sign(statement.encode()), delta.read_bytes())


def synced(silo: AtWork, update: str) -> int:
    return int(
        silo.member.updates.UploadStatus(update_pb2.UploadStatusRequest(update=update), timeout=10).synced
    )


def entries_of(server: Server, type: str) -> list[Any]:
    with server.core.reader.connect() as connection:
        data = (
            connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars().all()
        )
    return [entry.detail for entry in map(parse_entry, data) if entry.type == type]
