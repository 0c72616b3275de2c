"""Tokens, certificates and revocation over the real state store and log."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import select

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import Entry, parse_entry
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt
from anabranch.wire import identity
from anabranch.wire.bundle import JoinBundle, parse_bundle
from server.allow_list import OVERLAP, AllowList
from server.enrolment import SigningKey
from server.membership import FAILURES, RENEWALS, Membership
from server.sessions import Sessions
from server.state import tables
from tests.server.edge import Candidate, candidate, make_membership
from tests.server.harness import ADMIN, FEDERATION, MANIFEST, ORIGIN, Server


@pytest.fixture
def membership(server: Server) -> Membership:
    return make_membership(server, Sessions(server.clock))


def invite(membership: Membership, silo: str = "north", ttl: int = 0) -> JoinBundle:
    return parse_bundle(membership.invite(ADMIN, silo, ttl)[0])


def enrol(membership: Membership, bundle: JoinBundle, who: Candidate) -> tuple[str, tuple[Receipt, ...]]:
    """The fingerprint of the certificate, and the receipts."""
    nonce = membership.begin(bundle.token_id)
    keys = who.keys(bundle.token_id, nonce)
    chain, receipts = membership.enrol(bundle.token_id, bytes.fromhex(bundle.token), who.csr, keys)
    return identity.fingerprint(identity.parse_chain(chain)[0]), receipts


def agent(silo: str) -> identity.Identity:
    return identity.Identity(FEDERATION, "silo", silo, 0)


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.code


def proven(server: Server, receipt: Receipt) -> Entry:
    return verify_receipt(receipt, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)[0]


def detail_of(entry: Entry) -> dict[str, Any]:
    assert isinstance(entry.detail, BaseModel)
    return entry.detail.model_dump()


def log_of(server: Server) -> list[Entry]:
    with server.core.reader.connect() as connection:
        data = connection.execute(select(tables.entries.c.data).order_by(tables.entries.c.index)).scalars()
        return [parse_entry(bytes(entry)) for entry in data]


def test_a_silo_enrols_with_its_token_and_the_log_says_so(server: Server, membership: Membership) -> None:
    bundle, who = invite(membership), candidate()
    fingerprint, receipts = enrol(membership, bundle, who)
    enrolled, issued = (proven(server, receipt) for receipt in receipts)
    assert (enrolled.type, issued.type) == ("silo.enrolled", "cert.issued")
    detail = detail_of(enrolled)
    assert detail["csr_sha256"] == hashlib.sha256(who.csr).hexdigest()
    assert {key["purpose"] for key in detail["keys"]} == {"update", "approver"}
    assert detail_of(issued)["cert_sha256"] == fingerprint
    assert membership.allow_list.check(fingerprint, server.clock()) == "spiffe://fed.test/silo/north/agent/0"
    (row,) = membership.silos()
    assert (row.name, row.status) == ("north", "active")


def test_the_token_is_stored_and_logged_as_a_hash_only(server: Server, membership: Membership) -> None:
    bundle = invite(membership)
    enrol(membership, bundle, candidate())
    written = b"".join(path.read_bytes() for path in (server.directory / "state").iterdir() if path.is_file())
    assert bundle.token.encode() not in written
    assert bytes.fromhex(bundle.token) not in written


def test_of_many_racing_requests_exactly_one_redeems_each_token(membership: Membership) -> None:
    racers, tls = 64, candidate()
    for bundle in [invite(membership, f"silo-{number}") for number in range(3)]:
        barrier = Barrier(racers)

        def race(who: Candidate, bundle: JoinBundle = bundle, barrier: Barrier = barrier) -> str:
            barrier.wait()
            try:
                return enrol(membership, bundle, who)[0]
            except Refused as error:
                return error.code

        new = identity.new_signing_key
        candidates = [
            replace(tls, update=new(), approver=new(), csr=identity.csr(tls.tls_key)) for _ in range(racers)
        ]
        with ThreadPoolExecutor(racers) as pool:
            outcomes = list(pool.map(race, candidates))
        assert sum(len(outcome) == 64 for outcome in outcomes) == 1
        assert outcomes.count(Reason.BAD_TOKEN) == racers - 1


def test_the_request_that_won_may_be_repeated_because_its_answer_may_be_lost(
    server: Server, membership: Membership
) -> None:
    bundle, who = invite(membership), candidate()
    first, _ = enrol(membership, bundle, who)
    again, receipts = enrol(membership, bundle, who)
    assert [proven(server, receipt).type for receipt in receipts] == ["silo.enrolled", "cert.issued"]
    assert membership.allow_list.check(again, server.clock()).endswith("/silo/north/agent/0")
    assert refusal(lambda: membership.allow_list.check(first, server.clock())) is Reason.BAD_CERTIFICATE
    assert refusal(lambda: enrol(membership, bundle, candidate())) is Reason.BAD_TOKEN


def test_a_token_expires_and_five_wrong_guesses_void_it(server: Server, membership: Membership) -> None:
    old = invite(membership, "north", ttl=60)
    server.clock.advance(61)
    assert refusal(lambda: enrol(membership, old, candidate())) is Reason.BAD_TOKEN
    guessed = invite(membership, "south")
    wrong = guessed.model_copy(update={"token": "00" * 32})
    for _ in range(FAILURES):
        assert refusal(lambda: enrol(membership, wrong, candidate())) is Reason.BAD_TOKEN
    assert refusal(lambda: enrol(membership, guessed, candidate())) is Reason.BAD_TOKEN


def test_four_wrong_guesses_do_not(membership: Membership) -> None:
    bundle = invite(membership)
    wrong = bundle.model_copy(update={"token": "00" * 32})
    for _ in range(FAILURES - 1):
        refusal(lambda: enrol(membership, wrong, candidate()))
    enrol(membership, bundle, candidate())


def test_keys_must_be_proven_for_this_token_and_this_moment(server: Server, membership: Membership) -> None:
    bundle, other, who = invite(membership), invite(membership, "south"), candidate()
    token = bytes.fromhex(bundle.token)

    def attempt(keys: list[SigningKey]) -> Reason:
        return refusal(lambda: membership.enrol(bundle.token_id, token, who.csr, keys))

    nonce = membership.begin(bundle.token_id)
    assert attempt(who.keys(other.token_id, nonce)) is Reason.BAD_SIGNATURE
    assert attempt(who.keys(bundle.token_id, membership.begin(other.token_id))) is Reason.BAD_SIGNATURE
    good = who.keys(bundle.token_id, nonce)
    assert (
        attempt([good[0], replace(good[1], public=candidate().keys("x", b"")[1].public)])
        is Reason.BAD_SIGNATURE
    )
    assert attempt([replace(good[0], public=b"short"), good[1]]) is Reason.BAD_SIGNATURE
    assert attempt(good[:1]) is Reason.MALFORMED
    assert attempt([*good, good[0]]) is Reason.MALFORMED
    assert attempt([good[0], replace(good[0], purpose="approver")]) is Reason.MALFORMED
    server.clock.advance(601)
    assert attempt(good) is Reason.BAD_SIGNATURE


def test_a_key_that_belongs_to_another_silo_or_was_retired_is_refused(membership: Membership) -> None:
    who = candidate()
    enrol(membership, invite(membership, "north"), who)
    assert refusal(lambda: enrol(membership, invite(membership, "south"), who)) is Reason.MALFORMED
    enrol(
        membership, invite(membership, "north"), who
    )  # its own, on a new agent: an expired certificate's way back
    membership.revoke(ADMIN, "north")
    assert refusal(lambda: enrol(membership, invite(membership, "north"), who)) is Reason.MALFORMED


def test_renewal_gives_a_new_certificate_and_ends_the_old_one_at_first_use(
    server: Server, membership: Membership
) -> None:
    old, _ = enrol(membership, invite(membership), candidate())
    chain, receipt = membership.renew(agent("north"), candidate().csr, old)
    new = identity.fingerprint(identity.parse_chain(chain)[0])
    detail = detail_of(proven(server, receipt))
    assert (detail["cert_sha256"], detail["previous_cert_sha256"]) == (new, old)
    check, now = membership.allow_list.check, server.clock()
    assert check(old, now) == check(old, now + OVERLAP - 1)
    assert check(new, now) == "spiffe://fed.test/silo/north/agent/0"
    assert refusal(lambda: check(old, now)) is Reason.BAD_CERTIFICATE


def test_the_old_certificate_ends_after_ten_minutes_also_after_a_restart(
    server: Server, membership: Membership
) -> None:
    old, _ = enrol(membership, invite(membership), candidate())
    membership.renew(agent("north"), candidate().csr, old)
    restarted = AllowList()
    restarted.load(server.core.reader, server.clock())
    for allow_list in (membership.allow_list, restarted):
        allow_list.check(old, server.clock() + OVERLAP - 1)
        assert (
            refusal(lambda a=allow_list: a.check(old, server.clock() + OVERLAP + 1)) is Reason.BAD_CERTIFICATE
        )


def test_a_certificate_that_ended_by_a_clock_that_was_ahead_is_good_again_when_the_clock_is_set(
    server: Server, membership: Membership
) -> None:
    """Forgotten at a start, it was refused until the next one."""
    fingerprint, _ = enrol(membership, invite(membership), candidate())
    now, ahead = server.clock(), membership.lifetimes.silo + 86400
    restarted = AllowList()
    restarted.load(server.core.reader, now + ahead)
    restarted.add("0" * 64, "spiffe://fed.test/silo/south/agent/0", "south", now + 2 * ahead, 99, now + ahead)
    assert refusal(lambda: restarted.check(fingerprint, now + ahead)) is Reason.BAD_CERTIFICATE
    assert restarted.check(fingerprint, now) == "spiffe://fed.test/silo/north/agent/0"


def test_only_the_holder_renews_and_not_without_end(membership: Membership) -> None:
    north, _ = enrol(membership, invite(membership, "north"), candidate())
    enrol(membership, invite(membership, "south"), candidate())
    assert refusal(lambda: membership.renew(agent("south"), candidate().csr, north)) is Reason.BAD_CERTIFICATE
    assert (
        refusal(lambda: membership.renew(agent("north"), candidate().csr, "0" * 64)) is Reason.BAD_CERTIFICATE
    )
    for _ in range(RENEWALS):
        membership.renew(agent("north"), candidate().csr, north)
    assert refusal(lambda: membership.renew(agent("north"), candidate().csr, north)) is Reason.QUOTA


def test_revocation_shuts_everything_that_a_silo_holds(server: Server, membership: Membership) -> None:
    fingerprint, _ = enrol(membership, invite(membership), candidate())
    unused = invite(membership)
    receipt, retired = membership.revoke(ADMIN, "north", "key_compromise")
    detail = detail_of(proven(server, receipt))
    assert (detail["reason"], detail["certificates"], retired) == ("key_compromise", (fingerprint,), 0)
    assert (
        refusal(lambda: membership.allow_list.check(fingerprint, server.clock())) is Reason.REVOKED_IDENTITY
    )
    assert (
        refusal(lambda: membership.renew(agent("north"), candidate().csr, fingerprint))
        is Reason.REVOKED_IDENTITY
    )
    assert refusal(lambda: enrol(membership, unused, candidate())) is Reason.BAD_TOKEN
    restarted = AllowList()
    restarted.load(server.core.reader, server.clock())
    assert refusal(lambda: restarted.check(fingerprint, server.clock())) is Reason.REVOKED_IDENTITY
    with server.core.reader.connect() as connection:
        assert connection.execute(select(tables.keys.c.retired_at)).scalars().all() == [server.clock()] * 2


def test_a_revoked_silo_leaves_no_update_behind_that_is_not_merged(
    server: Server, membership: Membership
) -> None:
    silo = server.enrol("north")
    job, terms = server.submit()
    server.decide(silo, job, terms)
    server.send(silo, job, terms, 1.0)
    _, retired = membership.revoke(ADMIN, "north")
    assert retired == 1
    entries = log_of(server)
    (gone,) = (entry for entry in entries if entry.type == "update.retired")
    assert detail_of(gone)["reason"] == "withdrawn"
    assert detail_of(entries[-1])["updates"] == (gone.target.id,)


def test_an_upload_that_was_open_when_its_silo_was_revoked_is_refused_at_the_end(
    server: Server, membership: Membership
) -> None:
    silo = server.enrol("north")
    job, terms = server.submit()
    server.decide(silo, job, terms)
    lease = server.lease(silo, job)
    delta = silo.delta(server.directory, 1.0, MANIFEST)
    statement = silo.statement(lease, terms, delta)
    upload = server.core.intake.open("north", silo.actor, statement.update, silo.sign(statement.encode()), 0)
    upload.append(delta.read_bytes())  # type: ignore[union-attr]
    membership.revoke(ADMIN, "north")
    assert upload.finish().reason == Reason.BAD_LEASE  # type: ignore[union-attr]


def test_a_revoked_silo_may_be_invited_again_with_new_keys(server: Server, membership: Membership) -> None:
    old, _ = enrol(membership, invite(membership), candidate())
    membership.revoke(ADMIN, "north")
    new, _ = enrol(membership, invite(membership), candidate())
    assert membership.allow_list.check(new, server.clock()).endswith("/silo/north/agent/1")
    assert refusal(lambda: membership.allow_list.check(old, server.clock())) is Reason.REVOKED_IDENTITY


def test_a_certificate_whose_thread_comes_late_stays_shut() -> None:
    """Commits are ordered, the threads that carry them into memory are not."""
    allow_list = AllowList()
    allow_list.revoke("north", entry=8)
    allow_list.add("a" * 64, "spiffe://fed.test/silo/north/agent/0", "north", 100.0, entry=7, now=0.0)
    allow_list.add("b" * 64, "spiffe://fed.test/silo/north/agent/1", "north", 100.0, entry=9, now=0.0)
    assert refusal(lambda: allow_list.check("a" * 64, 1.0)) is Reason.REVOKED_IDENTITY
    allow_list.check("b" * 64, 1.0)
    allow_list.add("d" * 64, "spiffe://fed.test/admin/ada", None, 100.0, entry=12, now=0.0)
    allow_list.add("c" * 64, "spiffe://fed.test/admin/ada", None, 100.0, entry=11, now=0.0)
    allow_list.check("c" * 64, 1.0)
    allow_list.check("d" * 64, 1.0)


@pytest.mark.parametrize("name", ["", "North", "north/agent", "a" * 64, "north\n", "-north", "../x"])
def test_names_that_could_mean_something_else_are_refused(membership: Membership, name: str) -> None:
    assert refusal(lambda: membership.invite(ADMIN, name)) is Reason.MALFORMED
    assert refusal(lambda: membership.issue_here("admin", name, candidate().csr)) is Reason.MALFORMED


def test_what_an_administrator_asks_is_bounded(membership: Membership) -> None:
    assert refusal(lambda: membership.invite(ADMIN, "north", 86401)) is Reason.SIZE_LIMIT
    assert refusal(lambda: membership.revoke(ADMIN, "nobody")) is Reason.NOT_FOUND
    invite(membership)
    assert refusal(lambda: membership.revoke(ADMIN, "north", "Dr. Smith <a@b.c> said so")) is Reason.MALFORMED
    membership.revoke(ADMIN, "north")
    membership.revoke(ADMIN, "north")  # the answer may have been lost
