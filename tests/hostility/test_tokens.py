"""A one-time token that many hold at once: exactly one of them enrols with it."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from anabranch.errors import Reason, Refused
from anabranch.v1 import enrolment_pb2, enrolment_pb2_grpc
from anabranch.wire import identity
from anabranch.wire.bundle import parse_bundle
from server.membership import Membership
from server.sessions import Sessions
from tests.hostility.target import met
from tests.server.at_work import entries_of
from tests.server.edge import Candidate, Edge, candidate, make_membership
from tests.server.harness import Server

RACERS = 64


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    yield running
    running.core.close()


def racers() -> list[Candidate]:
    """Each with signing keys and a request of its own; the TLS key may be the same."""
    tls, new = candidate(), identity.new_signing_key
    return [replace(tls, update=new(), approver=new(), csr=identity.csr(tls.tls_key)) for _ in range(RACERS)]


def race(pool: ThreadPoolExecutor, membership: Membership, silo: str, who: list[Candidate]) -> Counter[str]:
    server = membership.observer
    bundle = parse_bundle(membership.invite(server, silo)[0])
    nonce, token, barrier = membership.begin(bundle.token_id), bytes.fromhex(bundle.token), Barrier(RACERS)

    def enrol(one: Candidate) -> str:
        keys = one.keys(bundle.token_id, nonce)
        barrier.wait()
        try:
            membership.enrol(bundle.token_id, token, one.csr, keys)
        except Refused as refusal:
            return refusal.code.value
        return "enrolled"

    return Counter(pool.map(enrol, who))


@pytest.mark.parametrize(
    "tokens", [2, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_sixty_four_race_for_each_token(server: Server, tokens: int) -> None:
    """Those who lose keep keys that nobody registered, so the same racers try for every token."""
    membership, who = make_membership(server, Sessions(server.clock)), racers()
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(tokens):
            outcome = race(pool, membership, f"silo-{number}", who)
            assert outcome == {"enrolled": 1, Reason.BAD_TOKEN.value: RACERS - 1}, number
            won = entries_of(server, "silo.enrolled")[-1].keys if number < 3 or number == tokens - 1 else ()
            taken = {bytes.fromhex(key.public) for key in won}
            new = identity.new_signing_key
            who = [
                replace(one, update=new(), approver=new())
                if not taken or one.update.public_key().public_bytes_raw() in taken
                else one
                for one in who
            ]
    assert len(entries_of(server, "silo.enrolled")) == tokens


def test_sixty_four_race_through_the_enrolment_port(server: Server) -> None:
    """Over the wire the port also bounds how much one address may do at once; one wins all the same."""
    edge = Edge(server).start()
    try:
        bundle, barrier = edge.invite("north"), Barrier(RACERS)
        nonce, who = edge.membership.begin(bundle.token_id), racers()

        def enrol(one: Candidate) -> str:
            channel = edge.dial(None, None, edge.ports.enrolment_port)
            keys = [
                enrolment_pb2.Key(purpose=key.purpose, public=key.public, proof=key.proof)
                for key in one.keys(bundle.token_id, nonce)
            ]
            request = enrolment_pb2.EnrolRequest(
                token_id=bundle.token_id, token=bytes.fromhex(bundle.token), csr=one.csr, keys=keys
            )
            stub = enrolment_pb2_grpc.EnrolmentStub(channel)
            barrier.wait()
            return met(lambda: stub.Enrol(request, timeout=30))

        with ThreadPoolExecutor(RACERS) as pool:
            outcome = Counter(pool.map(enrol, who))
        assert outcome["ok"] == 1
        assert outcome.keys() <= {"ok", Reason.BAD_TOKEN.value, Reason.QUOTA.value}
        edge.failures.flush()
        logged = sum(failed.count for failed in entries_of(server, "auth.failed"))
        assert logged == RACERS - 1
    finally:
        edge.stop()
