"""When there is something to revive, and what is in time: for all standings."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.terms import Revival
from server.core.revival import Standing, in_time, rest

numbers = st.integers(0, 60)
standings = st.builds(
    Standing,
    head=numbers,
    last=numbers,
    teachers=st.integers(0, 3),
    newest=st.none() | numbers,
    open=st.sampled_from([None, "claimed", "done"]),
)
rules = st.builds(Revival, freeze=numbers, late=st.integers(1, 20))


@given(rules, standings)
def test_a_task_is_given_out_exactly_when_everything_holds(rule: Revival, at: Standing) -> None:
    due = (
        at.open is None
        and rule.freeze <= at.head < at.last
        and (at.newest is None or at.newest < at.head)
        and at.teachers > 0
    )
    found = rest(rule, at)
    assert (found is None) == due
    assert found is None or (found.seconds > 0 and found.reason)


@given(rules, numbers, numbers)
def test_a_result_is_in_time_for_as_many_versions_as_the_terms_say(
    rule: Revival, version: int, more: int
) -> None:
    assert in_time(rule, version, version)
    assert in_time(rule, version + more, version) == (more < rule.late)
    if not in_time(rule, version + more, version):  # nothing comes back
        assert not in_time(rule, version + more + 1, version)
