"""When a buffer closes: the whole rule, without a database or a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.terms import Aggregation
from server.core.buffer import MOST, Closing, StillOpen, Waiting, close

FEDBUFF = Aggregation(strategy="fedbuff", buffer=3, max_wait="10m")
FEDAVG = Aggregation(strategy="fedavg", max_wait="10m")
FEDFIX = Aggregation(strategy="fedfix", interval="1m")
ONE_BY_ONE = [Aggregation(strategy="fedasync"), Aggregation(strategy="afl-dw", s_max=3)]


def waiting(*bases: int, at: float = 0.0) -> list[Waiting]:
    return [Waiting(f"u{i}", f"s{i}", base, at + i) for i, base in enumerate(bases)]


def test_fedbuff_takes_the_first_updates_whatever_their_base() -> None:
    assert close(FEDBUFF, 9, 0.0, waiting(0, 9, 4, 9), ["s0"], 1.0) == Closing(
        ("u0", "u1", "u2"), "full", (), ()
    )


def test_fedbuff_waits_then_closes_with_what_is_there_and_names_the_absent() -> None:
    assert close(FEDBUFF, 0, 0.0, [], ["s0"], 1e9) == StillOpen(None)
    assert close(FEDBUFF, 0, 0.0, waiting(0, at=100.0), ["s0", "s1"], 699.0) == StillOpen(700.0)
    closing = close(FEDBUFF, 0, 0.0, waiting(0, at=100.0), ["s0", "s1"], 700.0)
    assert closing == Closing(("u0",), "max_wait", ("s1",), ())


def test_fedavg_waits_for_everybody_until_the_deadline() -> None:
    everybody = ["s0", "s1", "s2"]
    assert close(FEDAVG, 5, 0.0, waiting(5, 5), everybody, 599.0) == StillOpen(600.0)
    assert close(FEDAVG, 5, 0.0, waiting(5, 5), everybody, 600.0) == Closing(
        ("u0", "u1"), "max_wait", ("s2",), ()
    )
    assert close(FEDAVG, 5, 0.0, waiting(5, 5, 5), everybody, 1.0) == Closing(
        ("u0", "u1", "u2"), "full", (), ()
    )
    assert close(FEDAVG, 5, 0.0, [], everybody, 1e9) == StillOpen(None)


def test_fedavg_retires_what_missed_its_round() -> None:
    closing = close(FEDAVG, 5, 0.0, waiting(4, 5, 5), ["s1", "s2"], 1.0)
    assert closing == Closing(("u1", "u2"), "full", (), ("u0",))


def test_a_window_closes_when_it_ends_whoever_arrived() -> None:
    everybody = [f"s{i}" for i in range(9)]
    assert close(FEDFIX, 5, 1000.0, [], everybody, 1e9) == StillOpen(None)
    first = waiting(5, 3, at=1001.0)
    assert close(FEDFIX, 5, 1000.0, first, everybody, 1059.0) == StillOpen(1060.0)
    assert close(FEDFIX, 5, 1000.0, first, everybody, 1060.0) == Closing(("u0", "u1"), "interval", (), ())


def test_a_window_in_which_nothing_arrived_makes_no_version() -> None:
    """The next ones are as long, and end where they would have ended."""
    late = waiting(5, at=1130.0)
    assert close(FEDFIX, 5, 1000.0, late, ["s0"], 1150.0) == StillOpen(1180.0)
    assert close(FEDFIX, 5, 1000.0, late, ["s0"], 1180.0) == Closing(("u0",), "interval", (), ())
    early = waiting(5, at=990.0)  # while the version before was computed
    assert close(FEDFIX, 5, 1000.0, early, ["s0"], 1000.0) == StillOpen(1060.0)


def test_a_window_takes_no_more_than_a_log_entry_names() -> None:
    closing = close(FEDFIX, 5, 0.0, waiting(*[5] * 120), ["s0"], 1e6)
    assert isinstance(closing, Closing)
    assert len(closing.inputs) == MOST


@pytest.mark.parametrize("rule", ONE_BY_ONE)
def test_one_update_at_a_time_in_log_order(rule: Aggregation) -> None:
    assert close(rule, 9, 0.0, waiting(4, 9, 2), ["s0"], 1.0) == Closing(("u0",), "full", (), ())


@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.sampled_from([FEDBUFF, FEDAVG, FEDFIX, *ONE_BY_ONE]),
    st.floats(0, 1e6),
)
def test_nothing_is_both_taken_and_left_out(bases: list[int], rule: Aggregation, now: float) -> None:
    updates = waiting(*bases)
    silos = sorted({u.silo for u in updates} | {"absent"})
    closing = close(rule, 5, 0.0, updates, silos, now)
    if isinstance(closing, Closing):
        assert closing.inputs
        assert not set(closing.inputs) & set(closing.superseded)
        assert set(closing.inputs) | set(closing.superseded) <= {u.update for u in updates}
        assert (closing.absent == ()) == (closing.closed_by != "max_wait")
    elif closing.at is not None:
        assert closing.at > now
