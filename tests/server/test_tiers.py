"""Tiers and schedules at the server: whose view is whose, what is admitted, what leaves."""

from dataclasses import dataclass

import numpy as np
import pytest
from sqlalchemy import select

from anabranch.errors import Reason, Refused
from anabranch.link import Packing
from anabranch.terms import JobTerms
from anabranch.tlog.details import ModelEncoded
from anabranch.wire.packed import PackedFile, check_packed, pack
from anabranch.wire.statements import UpdateStatement
from anabranch.wire.tensors import TensorFile
from server.intake import Decided
from server.scheduling import Lease
from server.state import records, tables
from tests.server.at_work import entries_of
from tests.server.harness import MANIFEST, FakeSilo, Server

DAY = 86400.0
TIERED = """
[silos]
min = 1
[evaluation]
every = 50
[aggregation]
buffer = 1
server_optimizer = { lr = 0.5 }
[link]
download_density = 0.8
upload_density = 0.8
download_decay = 0.5
upload_decay = 0.5
decay_every = 2
[link.tiers.slow]
silos = ["b"]
download_density = 0.4
upload_density = 0.2
upload_values = "bf16"
[link.tiers.twin]
silos = ["c"]
upload_density = 0.1
[link.tiers.whole]
silos = ["d"]
download_density = 1.0
upload_density = 1.0
"""


@dataclass
class Told:
    """A job of silos a (in no tier), b (slow), c (twin: views as a's) and d (whole)."""

    server: Server
    silos: dict[str, FakeSilo]
    job: str
    terms: JobTerms

    def lease(self, name: str) -> Lease:
        return self.server.lease(self.silos[name], self.job)

    def send(
        self, name: str, lease: Lease, value: float = 1.0, packing: Packing | None = None, **changes: object
    ) -> Decided:
        """A constant delta, as the terms say it travels or in another `packing`."""
        silo, file = self.silos[name], self.terms.file
        delta = silo.delta(self.server.directory, value)
        packing = packing or file.upload(lease.view.version, name)
        if packing is not None:
            packed = delta.with_suffix(".packed")
            with TensorFile(delta, MANIFEST) as source:
                pack(source, MANIFEST, packing, packed)
            delta = packed
        statement: UpdateStatement = silo.statement(lease, self.terms, delta, **changes)
        return self.server.upload(silo, statement, delta.read_bytes())

    def publish(self, name: str, value: float = 1.0) -> None:
        assert self.send(name, self.lease(name), value).reason == ""
        assert self.server.core.aggregation.advance(self.job)

    def view(self, version: int, name: str) -> records.View:
        with self.server.core.reader.connect() as connection:
            job = records.job_row(connection, self.job)
            row = records.version_row(connection, self.job, version)
            return records.view_of(connection, job, row, name)

    def kept(self, version: int, name: str) -> int:
        """Entries that are not zero of what the silo gets."""
        view, blobs = self.view(version, name), self.server.core.blobs
        assert view.packing is not None
        check_packed(blobs.require(view.digest), MANIFEST, view.packing)
        with PackedFile(blobs.require(view.digest), MANIFEST, view.packing.values) as file:
            return sum(_nonzero(file, spec.name, spec.elements) for spec in MANIFEST.specs)


def _nonzero(file: PackedFile, name: str, elements: int) -> int:
    values = np.empty(elements, np.float32)
    file.read(name, 0, elements, values)
    return int(np.count_nonzero(values))


@pytest.fixture
def told(server: Server) -> Told:
    silos = {name: server.enrol(name) for name in "abcd"}
    job, terms = server.submit(TIERED)
    for silo in silos.values():
        server.decide(silo, job, terms)
    return Told(server, silos, job, terms)


def test_each_silo_gets_and_sends_what_its_tier_does(told: Told) -> None:
    """15 entries: of them 0.8 and 0.4, and half of that from version 2 on."""
    told.publish("d")
    told.publish("d")
    assert [told.kept(1, name) for name in "abc"] == [12, 6, 12]
    assert [told.kept(2, name) for name in "abc"] == [6, 3, 6]
    assert told.view(1, "d").packing is None
    assert told.kept(2, "d") == 7  # 1.0, halved
    leases = {name: told.lease(name) for name in "abcd"}
    assert {name: lease.view for name, lease in leases.items()} == {
        name: told.view(2, name) for name in "abcd"
    }
    assert leases["a"].view.digest == leases["c"].view.digest != leases["b"].view.digest
    for name in "abcd":
        assert told.send(name, leases[name]).reason == ""


def test_the_log_tells_each_tiers_view_and_equal_ones_are_one_file(told: Told) -> None:
    told.publish("d")
    logged = entries_of(told.server, "model.encoded")
    assert all(isinstance(one, ModelEncoded) for one in logged)
    assert [(one.version, one.tier) for one in logged] == [
        (number, tier) for number in (0, 1) for tier in (None, "slow", "twin")
    ]
    newest = {one.tier: one.view_sha256 for one in logged[3:]}
    assert newest[None] == newest["twin"] == told.view(1, "a").digest
    assert newest["slow"] == told.view(1, "b").digest
    with told.server.core.reader.connect() as connection:
        rows = connection.execute(select(tables.views).where(tables.views.c.version == 1)).all()
    assert {row.tier: row.digest for row in rows} == {tier or "": one for tier, one in newest.items()}


def test_an_update_from_another_tiers_view_is_refused(told: Told) -> None:
    told.publish("d")
    lease = told.lease("b")
    decided = told.send("b", lease, base_sha256=told.view(1, "a").digest)
    assert decided.reason == Reason.UNKNOWN_BASE
    assert told.send("a", told.lease("a"), base_sha256=told.view(1, "d").digest).reason == Reason.UNKNOWN_BASE


@pytest.mark.parametrize(
    ("name", "packing", "reason"),
    [
        ("b", Packing(0.8, "bf16"), Reason.SIZE_LIMIT),  # as dense as others may
        ("b", Packing(0.2, "fp32"), Reason.MALFORMED),
        ("a", Packing(0.2, "bf16"), Reason.MALFORMED),
        ("d", Packing(0.9, "fp32"), Reason.SIZE_LIMIT),  # whole files have one size
        ("b", Packing(0.2, "bf16"), ""),
        ("a", Packing(0.3, "fp32"), ""),  # less is not refused
    ],
)
def test_an_update_is_judged_by_its_silos_tier(told: Told, name: str, packing: Packing, reason: str) -> None:
    assert told.send(name, told.lease(name), packing=packing).reason == reason


def test_an_update_is_judged_by_its_base_and_not_by_the_head(told: Told) -> None:
    """Densities have halved while it was made."""
    early = told.lease("a")
    told.publish("d")
    told.publish("d")
    assert told.send("a", early).reason == ""
    assert told.server.core.aggregation.advance(told.job)
    late = told.lease("a")
    assert late.view.version == 3
    assert told.send("a", late, packing=Packing(0.8, "fp32")).reason == Reason.SIZE_LIMIT


def test_evaluations_are_of_the_silos_own_view(server: Server) -> None:
    silos = {name: server.enrol(name) for name in "ab"}
    job, terms = server.submit(TIERED.replace("every = 50", "every = 1"))
    for silo in silos.values():
        server.decide(silo, job, terms)
    told = Told(server, silos, job, terms)
    told.publish("a")
    lease = told.lease("b")
    assert (lease.kind, lease.view) == ("evaluate", told.view(1, "b"))


def test_a_silo_is_sent_its_own_view_and_no_other(told: Told) -> None:
    told.publish("d")
    mine, others = told.view(1, "b"), told.view(1, "a")
    room = told.server.core.jobs
    found = room.model("b", told.job, mine.digest)
    assert (found.view, len(found.receipts)) == (mine, 2)
    for digest in (others.digest, told.view(1, "d").digest):
        with pytest.raises(Refused) as refused:
            room.model("b", told.job, digest)
        assert refused.value.code is Reason.NOT_FOUND
    whole = room.model("d", told.job, told.view(1, "d").digest)
    assert (whole.view.packing, len(whole.receipts)) == (None, 1)


def test_a_silo_in_no_tier_of_a_job_has_the_others_view(told: Told) -> None:
    """Whoever wrote the job did not know of it."""
    late = told.server.enrol("e")
    told.server.decide(late, told.job, told.terms)
    told.silos["e"] = late
    assert told.lease("e").view == told.view(0, "a")


def test_views_of_every_tier_leave_with_their_version(told: Told) -> None:
    for value in (1.0, 2.0, 3.0):
        told.publish("d", value)
    server = told.server
    gone = {told.view(1, name).digest for name in "abcd"}
    stays = {told.view(3, name).digest for name in "abcd"}
    server.clock.advance(8 * DAY)
    server.core.retention.prune()
    left = {digest for digest in gone | stays if server.core.blobs.path(digest).exists()}
    assert left == stays


@pytest.mark.parametrize("key", ["upload_density", "download_density"])
def test_a_tier_without_an_entry_is_refused_at_submission(server: Server, key: str) -> None:
    with pytest.raises(Refused, match=r"a density of 0\.05 leaves none of 15 entries"):
        server.submit(f'[link]\n[link.tiers.slow]\nsilos = ["b"]\n{key} = 0.05\n')
    server.submit("[link]\nupload_density = 0.1\nupload_decay = 0.001\ndecay_every = 1\n")  # one entry stays
