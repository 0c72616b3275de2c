"""How many steps a fedcompass silo makes and when its group closes: the whole rule, without a database or a clock."""

from collections.abc import Sequence
from math import floor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.terms import Aggregation, Job, JobFile, JobTerms, Training
from server.core.buffer import MOST, Closing, StillOpen
from server.core.compass import SLACK, Arrived, Booking, Member, book, close, speed, waits

RULE = Aggregation(strategy="fedcompass", local_steps_min=20, max_wait="1h")


def terms(rule: Aggregation = RULE, most: int = 100) -> JobTerms:
    file = JobFile(job=Job(name="v", task="task.py:V"), training=Training(local_steps=most), aggregation=rule)
    return JobTerms(file=file, archive_sha256="a" * 64, initial_sha256="b" * 64, manifest_sha256="c" * 64)


A = Member("a", "g", 300.0, 320.0, 1.0)  # expected at 300, waited for until 320, a second for a step


def booked(seconds: float, now: float, groups: Sequence[Member] = (A,)) -> Booking:
    return book(terms(), "s", {"s": seconds}, groups, (), now)


def test_the_first_group_is_founded_with_all_steps() -> None:
    assert booked(1.5, 100.0, ()) == Booking(100, None, 250.0, 280.0, 1.5)


def test_a_group_is_joined_with_the_steps_there_is_time_for() -> None:
    """floor((300 - 200) / 1.5) = 66."""
    assert booked(1.5, 200.0) == Booking(66, "g", 300.0, 320.0, 1.5)


def test_of_two_groups_the_one_that_leaves_more_steps() -> None:
    sooner = Member("b", "h", 290.0, 999.0, 1.0)
    assert booked(2.0, 240.0, [sooner, A]).group == "g"
    assert booked(2.0, 240.0, [sooner, A]).steps == 30


def test_what_cannot_join_meets_the_fastest_when_it_is_done_once_more() -> None:
    """floor((300 - 260) / 2.6) = 15 are too few; floor((320 + 100 * 1 - 260) / 2.6) = 61 steps end at 418.6."""
    found = booked(2.6, 260.0)
    assert (found.steps, found.group) == (61, None)
    assert found.expected == pytest.approx(260 + 61 * 2.6)
    assert found.latest == pytest.approx(260 + 61 * 2.6 * 1.2)


def test_the_fastest_counts_also_when_it_has_arrived() -> None:
    arrived = [Arrived("u", 255.0, Member("b", "g", 300.0, 320.0, 0.5))]
    found = book(terms(), "s", {"s": 2.6}, [A], arrived, 260.0)
    assert found.steps == floor((320 + 50 - 260) / 2.6) == 42


@pytest.mark.parametrize(("seconds", "steps"), [(20.0, 20), (0.2, 100), (9.0, 20), (1.61, 99)])
def test_a_founder_makes_neither_too_few_steps_nor_too_many(seconds: float, steps: int) -> None:
    """160 seconds are 8, 800, 17 and 99 steps."""
    assert booked(seconds, 260.0, [Member("a", "g", 260.0, 320.0, 1.0)]).steps == steps


def test_a_group_past_its_latest_time_is_nobodys() -> None:
    assert booked(2.6, 320.0) == Booking(100, None, 580.0, 320.0 + 2.6 * 100 * 1.2, 2.6)


def test_nobody_is_waited_for_longer_than_max_wait() -> None:
    found = booked(600.0, 1000.0, ())
    assert (found.steps, found.expected, found.latest) == (100, 4600.0, 4600.0)


def test_silos_merged_together_are_placed_fastest_first_whoever_asks_first() -> None:
    speeds = {"slow": 4.0, "quick": 1.0, "middle": 1.5}
    slow = book(terms(), "slow", speeds, (), (), 1000.0)
    assert slow == Booking(25, None, 1100.0, 1120.0, 4.0)
    founder = Member("slow", "g", slow.expected, slow.latest, 4.0)
    del speeds["slow"]
    quick = book(terms(), "quick", speeds, [founder], (), 1000.0)
    assert (quick.steps, quick.group) == (100, "g")
    middle = book(terms(), "middle", {"middle": 1.5}, [founder], (), 1000.0)
    assert (middle.steps, middle.group) == (66, "g")


def test_speed_is_a_moving_average() -> None:
    assert speed(None, 100.0, 300.0, 100) == 2.0
    assert speed(2.0, 300.0, 330.0, 10) == pytest.approx(0.1 * 2.0 + 0.9 * 3.0)
    assert speed(None, 100.0, 40.0, 10) > 0  # the clock was set back


def arrived(update: str, at: float, group: str | None = "g", latest: float = 320.0) -> Arrived:
    return Arrived(update, at, Member(f"silo-{update}", group, 300.0, latest, 1.0))


def test_a_group_closes_when_everybody_has_arrived_and_takes_late_updates_along() -> None:
    late = arrived("late", 330.0)
    here = [late, arrived("x", 350.0, "h", 400.0), arrived("other", 351.0, "i", 500.0)]
    at_work = [Member("z", "i", 450.0, 500.0, 1.0)]
    assert close(RULE, here, at_work, 352.0) == Closing(("late", "x"), "full", (), ())


def test_a_group_closes_at_its_latest_time_and_names_the_absent() -> None:
    here = [arrived("x", 299.0), arrived("y", 320.0)]
    assert close(RULE, here, [A], 319.9) == StillOpen(320.0)
    assert close(RULE, here, [A], 320.0) == Closing(("x", "y"), "latest", ("a",), ())


def test_a_first_update_is_merged_alone() -> None:
    here = [arrived("x", 299.0), arrived("new", 299.5, None), arrived("newer", 299.6, None)]
    assert close(RULE, here, (), 300.0) == Closing(("new",), "first", (), ())


def test_late_updates_alone_wait_for_a_group_or_max_wait() -> None:
    here = [arrived("x", 321.0), arrived("y", 400.0)]
    assert close(RULE, here, [A], 3920.9) == StillOpen(3921.0)
    assert close(RULE, here, [A], 3921.0) == Closing(("x", "y"), "max_wait", (), ())
    assert close(RULE, (), [A], 1e9) == StillOpen(None)


def test_a_version_takes_no_more_than_its_entry_can_name() -> None:
    here = [arrived(f"{i:03}", 299.0) for i in range(MOST + 20)]
    closing = close(RULE, here, (), 300.0)
    assert isinstance(closing, Closing)
    assert closing.inputs == tuple(f"{i:03}" for i in range(MOST))
    assert close(RULE, here[MOST:], (), 300.0) == Closing(
        tuple(f"{i}" for i in range(100, 120)), "full", (), ()
    )


def test_who_waits_for_what_it_sent() -> None:
    here = [arrived("x", 320.0), arrived("late", 320.1), arrived("new", 0.0, None)]
    assert [waits(f"silo-{name}", here) for name in ("x", "late", "new", "nobody")] == [
        True,
        False,
        True,
        False,
    ]


SPEEDS = st.floats(1e-6, 1e6)
TIMES = st.floats(-1e4, 1e4)


@st.composite
def members(draw: st.DrawFn) -> Member:
    group = draw(st.sampled_from(["g", "h", "i", "j"]))
    shift = 1e9 + ord(group) * draw(st.just(7.0))
    return Member(draw(st.text("abc", max_size=2)), group, shift, shift + 50.0, draw(SPEEDS))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from("stuv"), SPEEDS, min_size=1),
    st.lists(members(), max_size=8),
    TIMES,
    st.integers(1, 50),
    st.integers(0, 100),
    st.randoms(),
)
def test_bookings(speeds, at_work, shift, least, more, random) -> None:  # type: ignore[no-untyped-def]
    """Steps within the bounds; what is joined is there and as it was; no order of the facts matters."""
    rule, most, now = RULE.model_copy(update={"local_steps_min": least}), least + more, 1e9 + 700.0 + shift
    silo = random.choice(sorted(speeds))
    found = book(terms(rule, most), silo, speeds, at_work, (), now)
    assert least <= found.steps <= most
    assert now <= found.expected <= found.latest <= now + 3600.0 or found.group is not None
    groups = {(one.group, one.expected, one.latest) for one in at_work}
    if found.group is not None:
        assert (found.group, found.expected, found.latest) in groups
        assert now + (found.steps - SLACK) * speeds[silo] <= found.expected + 1e-6
    shuffled = random.sample(at_work, len(at_work))
    other = dict(random.sample(sorted(speeds.items()), len(speeds)))
    assert book(terms(rule, most), silo, other, shuffled, (), now) == found


@settings(deadline=None)
@given(SPEEDS, SPEEDS, st.integers(1, 50), st.integers(0, 100))
def test_two_silos_that_begin_together_are_expected_together_where_the_bounds_allow_it(
    quick: float, slow: float, least: int, more: int
) -> None:
    """As in figure 1 of the paper: the quick one makes all steps, the slow one as many as the same time allows."""
    quick, slow = sorted((quick, slow))
    rule, most = RULE.model_copy(update={"local_steps_min": least, "max_wait": "3000d"}), least + more
    speeds = {"quick": quick, "slow": slow}
    first = book(terms(rule, most), "quick", speeds, (), (), 0.0)
    assert (first.steps, first.group) == (most, None)
    here = [Member("quick", "g", first.expected, first.latest, quick)]
    second = book(terms(rule, most), "slow", {"slow": slow}, here, (), 0.0)
    fits = floor(min(most * quick / slow + SLACK, most))
    assert (second.group == "g") is (fits >= least)
    if second.group == "g":
        assert second.steps == fits
