"""Views of tiers: what a server that holds the log's key could pretend, and where the auditor sees it."""

from dataclasses import dataclass, field

import pytest

from anabranch.link import Link, Packing, Tier
from anabranch.terms import Aggregation, Job, JobFile, Silos
from anabranch.tlog.entry import Target
from anabranch.wire import canonical
from anabranch.wire.packed import pack
from anabranch.wire.tensors import TensorFile
from auditor.export import Export
from auditor.replay import Replay, replay
from tests.auditor.story import MANIFEST, Story
from tests.auditor.test_stories import assert_found

LINK = Link(
    download_density=0.5,
    download_decay=0.5,
    decay_every=2,
    tiers={"slow": Tier(silos=("b",), download_density=0.25, download_values="bf16")},
)
FILE = JobFile(
    job=Job(name="digits", task="task.py:Digits"), silos=Silos(min=2), aggregation=Aggregation(), link=LINK
)


@dataclass
class Tiers:
    """Encodes each version that a story publishes, once for each tier. `lie` before the version comes."""

    story: Story
    views: dict[tuple[int, str], str] = field(default_factory=dict)
    lies: dict[tuple[int, str], Packing | None] = field(default_factory=dict)  # None: not encoded at all

    def __post_init__(self) -> None:
        honest = self.story.publish

        def publish(**detail: object) -> None:
            honest(**detail)
            for whose, packing in LINK.views(self.story.head).items():
                self.encode(whose, packing)

        self.story.publish = publish  # type: ignore[method-assign]
        self.story.begin(FILE)

    def encode(self, whose: str, packing: Packing, **changed: object) -> None:
        """What stands in the log is as the terms say; what the file holds may be another thing."""
        story, version = self.story, self.story.head
        made = self.lies.get((version, whose), packing)
        if made is None:
            return
        path = story.book.directory / "view"
        with TensorFile(story.heads[version]["parameters"], MANIFEST) as file:
            digest, size = pack(file, MANIFEST, made, path)
        path.rename(story.book.path(digest))
        self.views[version, whose] = digest
        detail = {
            "version": version,
            "tier": whose or None,
            "density": canonical.hexfloat(packing.density),
            "encoding": packing.values,
            "view_sha256": digest,
            "bytes": size,
        }
        target = Target(kind="model", id=f"digits-1/{version}", sha256=digest)
        story.book.log("model.encoded", target, {**detail, **changed}, job="digits-1")

    def lease(self, silo: str, kind: str = "train", tier: str | None = None) -> str:
        own = LINK.tier(silo) if tier is None else tier
        return self.story.lease(silo, kind, view_sha256=self.views[self.story.head, own])

    def versions(self, count: int) -> "Tiers":
        for _ in range(count):
            updates = [self.story.update(silo, self.lease(silo)) for silo in "ab"]
            self.story.aggregate(updates)
        return self


@pytest.fixture
def told(story: Story) -> Tiers:
    return Tiers(story)


@pytest.fixture
def rerun(audit, tmp_path):
    """rerun(told) -> Replay of an export that verifies"""

    def run(told: Tiers) -> Replay:
        checked = audit(told.story)
        assert checked.report.verified, checked.report.findings
        return replay(Export(told.story.book.directory), checked.history, tmp_path)

    return run


def test_an_honest_server_is_exact(told, rerun):
    told.versions(3).story.evaluate("b", told.lease("b", "evaluate"))
    assert told.views[2, ""] != told.views[2, "slow"]
    done = rerun(told)
    assert (done.ok, done.exact) == (True, 3)


def test_a_silo_that_is_leased_another_tiers_view(told, audit):
    told.versions(1).lease("b", tier="")
    assert_found(audit(told.story).report, 5, f"hands out {told.views[1, '']} to silo b as version 1")


def test_a_silo_that_is_leased_the_parameters_instead_of_its_view(told, audit):
    told.versions(1).story.lease("b")
    assert_found(audit(told.story).report, 5, "to silo b as version 1")


def test_an_update_that_began_from_another_tiers_view(told, audit):
    lease = told.versions(1).lease("b")
    told.story.leases[lease]["view_sha256"] = told.views[1, ""]
    told.story.update("b", lease)
    assert_found(audit(told.story).report, 5, "base")


def test_an_evaluation_of_another_tiers_view(told, audit):
    lease = told.versions(1).lease("b", "evaluate")
    told.story.leases[lease]["view_sha256"] = told.views[1, ""]
    told.story.evaluate("b", lease, publish=True)
    assert_found(audit(told.story).report, 5, "evaluates other bytes than version 1")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"density": canonical.hexfloat(0.5)}, "encodes version 2 as the terms do not say"),  # before it fell
        ({"encoding": "fp32"}, "encodes version 2 as the terms do not say"),
        ({"tier": "fast"}, "encodes version 2 as the terms do not say"),
        ({"tier": None}, "encodes version 2 as the terms do not say"),
        ({}, "encodes version 2 once more"),
    ],
)
def test_an_encoding_that_the_terms_do_not_know(told, audit, changed, said):
    told.versions(2)
    told.encode("slow", LINK.views(2)["slow"], **changed)
    assert_found(audit(told.story).report, 5, said)


def test_a_view_that_does_not_follow_from_its_version(told, rerun):
    """The log tells the density of the terms, and the file has another."""
    told.lies[2, "slow"] = Packing(0.5, "bf16")
    done = rerun(told.versions(3))
    assert [one.version for one in done.different] == [2]
    assert f"view of tier slow: {told.views[2, 'slow']} was handed out" in done.different[0].differs


def test_a_tier_whose_view_was_not_made(told, rerun):
    told.lies[1, "slow"] = None
    told.versions(0).story.aggregate([told.story.update("a", told.lease("a"))])
    done = rerun(told)
    assert [one.version for one in done.different] == [1]
    assert "view of tier slow: none was handed out" in done.different[0].differs
