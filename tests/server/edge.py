"""A whole server edge in this process: both ports on loopback, real certificates, the real rooms behind them."""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.v1 import (
    admin_pb2_grpc,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    revival_pb2_grpc,
    update_pb2_grpc,
)
from anabranch.wire import identity, tls
from anabranch.wire.bundle import FederationInfo, JoinBundle, parse_bundle
from server.allow_list import AllowList
from server.ca.authority import create_authority, open_authority
from server.config import Advertise, Limits, Listen, ServerConfig
from server.enrolment import Nonces, SigningKey
from server.membership import Lifetimes, Membership
from server.sessions import Sessions
from server.transport.calls import Calls
from server.transport.failures import Failures
from server.transport.rooms import Rooms
from server.transport.serve import Ports
from server.vitals import Vitals
from tests.server.harness import FEDERATION, ORIGIN, Server

T = TypeVar("T")
ANYWHERE = "127.0.0.1:0"


class NoStreams:
    def end(self, silo: str, reason: str) -> None:
        return


def make_membership(server: Server, sessions: Sessions, streams: Any = None) -> Membership:
    keys = server.directory / "keys"
    if not keys.exists():
        create_authority(keys, FEDERATION, server.clock())
    authority = open_authority(keys, FEDERATION, server.clock())
    return Membership(
        writer=server.core.writer,
        reader=server.core.reader,
        authority=authority,
        allow_list=AllowList(),
        sessions=sessions,
        streams=streams or NoStreams(),
        directions=FederationInfo(
            server="127.0.0.1:7443",
            enrolment="127.0.0.1:7444",
            ca_pem=authority.ca_pem.decode(),
            ca_pins=(authority.pin,),
            federation=FEDERATION,
            log_origin=ORIGIN,
            log_vkey=server.signer.vkey,
        ),
        observer=server.core.observer,
        nonces=Nonces(bytes(32)),
        lifetimes=Lifetimes(),
        clock=server.clock,
        entropy=os.urandom,
        wake=lambda: None,
    )


@dataclass(frozen=True)
class Candidate:
    """A silo's freshly made keys, and the request it enrols with."""

    tls_key: EllipticCurvePrivateKey
    update: Ed25519PrivateKey
    approver: Ed25519PrivateKey
    csr: bytes

    def keys(self, token_id: str, nonce: bytes) -> list[SigningKey]:
        message = identity.enrolment_proof_message(token_id, nonce, self.csr)
        return [
            SigningKey(purpose, key.public_key().public_bytes_raw(), key.sign(message))
            for purpose, key in (("update", self.update), ("approver", self.approver))
        ]


def candidate() -> Candidate:
    key = identity.new_tls_key()
    return Candidate(key, identity.new_signing_key(), identity.new_signing_key(), identity.csr(key))


@dataclass(frozen=True)
class Member:
    """Somebody with a certificate, dialling the server."""

    key: bytes
    chain: bytes
    channel: grpc.Channel

    @property
    def federation(self) -> Any:
        return federation_pb2_grpc.FederationStub(self.channel)

    @property
    def updates(self) -> Any:
        return update_pb2_grpc.UpdatesStub(self.channel)

    @property
    def audit(self) -> Any:
        return audit_pb2_grpc.AuditStub(self.channel)

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.AdminStub(self.channel)

    @property
    def revival(self) -> Any:
        return revival_pb2_grpc.RevivalStub(self.channel)

    @property
    def fingerprint(self) -> str:
        return identity.fingerprint(identity.parse_chain(self.chain)[0])


class Edge:
    def __init__(self, server: Server, limits: Limits | None = None) -> None:
        self.server = server
        server.clock.now = time.time()  # TLS itself looks at the clock of this machine
        self.sessions = Sessions(server.clock)
        self.calls = Calls(limits or Limits(), time.monotonic)
        self.membership = make_membership(server, self.sessions, self.calls)
        self.allow_list = self.membership.allow_list
        self.failures = Failures(server.core.writer, server.core.observer)
        core = server.core
        self.rooms = Rooms(
            core.intake,
            core.scheduling,
            core.jobs,
            core.reviving,
            self.membership,
            core.log,
            self.sessions,
            self.allow_list,
            Vitals(server.directory, self.sessions),
        )
        self.config = ServerConfig(
            federation=FEDERATION,
            log_origin=ORIGIN,
            listen=Listen(server=ANYWHERE, enrolment=ANYWHERE, health=ANYWHERE),
            advertise=Advertise(server="127.0.0.1:7443", enrolment="127.0.0.1:7444"),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge", daemon=True)
        self._channels: list[grpc.Channel] = []

    def start(self) -> "Edge":
        self._thread.start()
        self.ports = self.on_loop(self._make_ports())
        self.on_loop(self.ports.open())
        return self

    async def _make_ports(self) -> Ports:
        return Ports(
            self.rooms,
            self.calls,
            self.failures,
            self.membership.authority,
            self.config,
            self.server.clock,
            time.monotonic,
        )

    def stop(self, grace: float = 0.0) -> None:
        for channel in self._channels:
            channel.close()
        self.on_loop(self.ports.drain(grace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def dial(self, key: bytes | None, chain: bytes | None, port: int = 0) -> grpc.Channel:
        address = f"127.0.0.1:{port or self.ports.server_port}"
        channel = tls.channel(address, self.membership.authority.ca_pem, key, chain)
        self._channels.append(channel)
        return channel

    def member(self, key: EllipticCurvePrivateKey, chain: bytes) -> Member:
        pem = identity.private_pem(key)
        return Member(pem, chain, self.dial(pem, chain))

    def admin(self, name: str = "ada") -> Member:
        key = identity.new_tls_key()
        chain, _ = self.membership.issue_here("admin", name, identity.csr(key))
        return self.member(key, chain)

    def reviver(self, name: str = "r") -> Member:
        key = identity.new_tls_key()
        chain, _ = self.membership.issue_here("reviver", name, identity.csr(key))
        return self.member(key, chain)

    def invite(self, silo: str) -> JoinBundle:
        bundle, _ = self.membership.invite(self.server.core.observer, silo)
        return parse_bundle(bundle)

    def enrol(self, silo: str, who: Candidate | None = None) -> Member:
        """Through the enrolment port, as an agent does it."""
        bundle, who = self.invite(silo), who or candidate()
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(self.dial(None, None, self.ports.enrolment_port))
        nonce = stub.Begin(enrolment_pb2.BeginRequest(token_id=bundle.token_id), timeout=10).nonce
        keys = [
            enrolment_pb2.Key(purpose=key.purpose, public=key.public, proof=key.proof)
            for key in who.keys(bundle.token_id, nonce)
        ]
        request = enrolment_pb2.EnrolRequest(
            token_id=bundle.token_id, token=bytes.fromhex(bundle.token), csr=who.csr, keys=keys
        )
        reply = stub.Enrol(request, timeout=10)
        return self.member(who.tls_key, reply.certificate_chain)


class Talk(AbstractContextManager["Talk"]):
    """A session stream held open: what was said is taken one message at a time."""

    def __init__(self, member: Member, hello: federation_pb2.Hello | None = None) -> None:
        self._ended = threading.Event()
        first = hello or federation_pb2.Hello(protocol_min=1, protocol_max=1, release="0.1.0")
        self._first = federation_pb2.AgentMessage(hello=first)
        self._beats: list[federation_pb2.AgentMessage] = []
        self.call = member.federation.Session(self._say(), timeout=30)

    def _say(self) -> Any:
        yield self._first
        while not self._ended.wait(0.01):
            while self._beats:
                yield self._beats.pop(0)

    def beat(self, **lease: Any) -> None:
        progress = [federation_pb2.LeaseProgress(**lease)] if lease else []
        heartbeat = federation_pb2.Heartbeat(progress=progress)
        self._beats.append(federation_pb2.AgentMessage(heartbeat=heartbeat))

    def hear(self) -> Any:
        return next(self.call)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.call.cancel()
