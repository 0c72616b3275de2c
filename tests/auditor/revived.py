"""Revivals in a story told by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anabranch.terms import JobFile, Revival
from anabranch.tlog.entry import Actor, Target
from anabranch.wire import canonical
from anabranch.wire.tensors import write_tensors
from tests.auditor.book import FED
from tests.auditor.story import MANIFEST, TERMS, Signed, Story

REVIVED: JobFile = TERMS.model_copy(update={"revival": Revival(freeze=0, warmup=1, late=2)})
REVIVER = Actor(id=f"spiffe://{FED}/reviver/r", auth="mtls")


def begin(story: Story) -> list[Signed]:
    """Two silos whose models may teach, and a version with an update of each."""
    story.begin(REVIVED)
    updates = [story.update("a", story.lease("a")), story.update("b", story.lease("b"))]
    story.aggregate(updates)
    return updates


def perform(story: Story, name: str, taught: Sequence[Signed], **changed: Any) -> str:
    """`changed`: fields of the entry that differ."""
    rng = np.random.default_rng(len(story.book.entries))
    arrays = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in MANIFEST.specs}
    delta = write_tensors(story.book.directory / "delta", MANIFEST, arrays)
    (story.book.directory / "delta").rename(story.book.path(delta))
    story.deltas[name] = delta
    half = canonical.hexfloat(0.5)
    detail = {
        "revival": name,
        "version": story.head,
        "delta_sha256": delta,
        "norm": half,
        "teachers": [{"silo": one.silo, "update": one.id} for one in taught],
        "seed": 1,
        "device": "cpu",
        "libraries": {"torch": "2.13.0"},
        "seconds": half,
        "effect": {"agreement_before": half, "agreement_after": half},
    }
    target = Target(kind="revival", id=name, sha256=delta)
    story.book.log("revival.performed", target, {**detail, **changed}, actor=REVIVER, job="digits-1")
    return name


def skip(story: Story, name: str, reason: str, **changed: Any) -> None:
    detail = {"revival": name, "version": story.head, "reason": reason}
    story.book.log("revival.skipped", Target(kind="revival", id=name), {**detail, **changed}, job="digits-1")


def go_on(story: Story, revival: str | None = None, **changed: Any) -> None:
    """Another version, of one update, with the result of `revival`."""
    story.aggregate([story.update("a", story.lease("a"))], revival=revival, **changed)
