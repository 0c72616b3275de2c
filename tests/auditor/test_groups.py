"""Leases of arrival groups: who is of one group is expected, and waited for, together."""

import pytest

from anabranch.terms import Aggregation, Job, JobFile, Silos
from anabranch.wire import canonical
from tests.auditor.story import START

EXPECTED = canonical.utc(START + 300)


def begin(story):
    aggregation = Aggregation(strategy="fedcompass", local_steps_min=4)
    story.begin(
        JobFile(job=Job(name="digits", task="task.py:Digits"), silos=Silos(min=2), aggregation=aggregation)
    )


def test_members_that_are_expected_together(story, audit):
    begin(story)
    founder = story.lease("a", group="lease-own", expected=EXPECTED)
    story.lease("b", group=founder, expected=EXPECTED)
    assert audit(story).report.verified


@pytest.mark.parametrize(
    "changed",
    [
        {"expected": canonical.utc(START + 301)},
        {"deadline": canonical.utc(START + 700)},
        {"group": "lease-of-nobody"},
        {"group": None},
        {"expected": None},
        {"kind": "evaluate"},
    ],
)
def test_members_that_are_not(story, audit, changed):
    begin(story)
    founder = story.lease("a", group="lease-own", expected=EXPECTED)
    story.lease("b", **{"group": founder, "expected": EXPECTED, **changed})
    assert any("not expected then" in one.what for one in audit(story).report.findings)
