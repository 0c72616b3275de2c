"""Whether a silo's models may teach: the policy's word, signed with the approval, told again when it changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Reason, Refused
from silo_agent import approval
from silo_agent.agent import connect
from silo_agent.approval import Proposal, announced, describe, examine, revival_of
from silo_agent.config import Home
from silo_agent.policy import Policy, Run
from tests.silo_agent.running import TRAINS, allow
from tests.silo_agent.world import World

ASKS = "[revival]\n"
YES, NO = Policy(run=Run(allow_revival=True)), Policy()
Until = Callable[..., None]


def proposal(world: World, home: Home) -> Proposal:
    with connect(home) as connection:
        return examine(connection.client.jobs(connection.log.seen())[0], connection.log)


def announce(home: Home, found: Proposal, rules: Policy) -> None:
    with connect(home) as connection:
        journal = home.job(found.job.id) / "receipts.jsonl"
        approval.announce(connection.client, connection.who, connection.log, found, "approve", rules, journal)


def test_only_an_approval_of_a_job_that_asks_says_a_word(
    world: World, enrolled: Home, job: Callable[[str], Path]
) -> None:
    world.offer(job(TRAINS), training=ASKS)
    found = proposal(world, enrolled)
    assert (revival_of(found, "approve", NO), revival_of(found, "approve", YES)) == (False, True)
    assert revival_of(found, "deny", YES) is revival_of(found, "withdraw", YES) is None
    assert "revival" in dict(describe(found, "hospital-a"))
    world.jobs.clear()
    world.offer(job(TRAINS))
    plain = proposal(world, enrolled)
    assert revival_of(plain, "approve", YES) is None
    assert "revival" not in dict(describe(plain, "hospital-a"))


def test_what_was_announced_is_known(world: World, enrolled: Home, job: Callable[[str], Path]) -> None:
    world.offer(job(TRAINS), training=ASKS)
    for rules, other in ((NO, YES), (YES, NO)):
        announce(enrolled, proposal(world, enrolled), rules)
        found = proposal(world, enrolled)
        assert announced(found, "approve", rules)
        assert not announced(found, "approve", other)
    assert world.words == [False, True]


def test_a_log_that_says_another_word_is_not_believed(
    world: World, enrolled: Home, job: Callable[[str], Path]
) -> None:
    world.offer(job(TRAINS), training=ASKS)
    world.honest = False
    with pytest.raises(Refused, match="revival") as refused:
        announce(enrolled, proposal(world, enrolled), NO)
    assert refused.value.code is Reason.DIGEST_MISMATCH


def test_a_policy_that_changes_its_word_is_told_while_the_agent_runs(
    world: World, start: Any, job: Any, interpreter: Path, until: Until, enrolled: Home
) -> None:
    """At once, and the job goes on."""
    terms = world.offer(job(TRAINS), training=ASKS)
    allow(enrolled, interpreter, terms.digest())
    start()
    until(lambda: world.words == [False])
    allow(enrolled, interpreter, terms.digest(), extra="allow_revival = true\n")
    until(lambda: world.words == [False, True])
    world.lease("l1")
    until(lambda: any(one.decided for one in world.uploads.values()))
    allow(enrolled, interpreter, terms.digest())
    until(lambda: world.words == [False, True, False])
    assert set(world.decided) == {"approved"}
