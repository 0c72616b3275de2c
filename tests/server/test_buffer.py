"""When a buffer closes: the whole rule, without a database or a clock."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.terms import Aggregation
from server.core.buffer import Closing, StillOpen, Waiting, close

FEDBUFF = Aggregation(strategy="fedbuff", buffer=3, max_wait="10m")
FEDAVG = Aggregation(strategy="fedavg", max_wait="10m")


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


@given(st.lists(st.integers(0, 5), max_size=8), st.sampled_from([FEDBUFF, FEDAVG]), st.floats(0, 1e6))
def test_nothing_is_both_taken_and_left_out(bases: list[int], rule: Aggregation, now: float) -> None:
    updates = waiting(*bases)
    silos = sorted({u.silo for u in updates} | {"absent"})
    closing = close(rule, 5, 0.0, updates, silos, now)
    if isinstance(closing, Closing):
        assert closing.inputs
        assert not set(closing.inputs) & set(closing.superseded)
        assert set(closing.inputs) | set(closing.superseded) <= {u.update for u in updates}
        assert (closing.absent == ()) == (closing.closed_by == "full")
    elif closing.at is not None:
        assert closing.at > now
