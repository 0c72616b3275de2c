"""What the ledger promises: nothing is spent twice, nothing is forgotten, and whatever was done to the files, nothing trains
on a ledger that may have spent less than the silo has.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.errors import Corrupt, Reason, Refused, Unavailable
from silo_agent.budget.accounting import Event
from silo_agent.budget.ledger import Ledger
from tests.silo_agent.budget.conftest import NOON, spend

Reopened = Callable[..., Ledger]


def heads(ledger: Ledger) -> list[str]:
    return [one.hash for one in ledger.charges()]


def test_a_charge_is_there_after_a_restart_and_names_all_that_was_asked(reopened: Reopened) -> None:
    first, second = spend("l-1"), spend("l-2", binding="other", unit="subject", event=Event(1.0, 0.5, 3))
    made = [reopened().charge(first), reopened().charge(second)]
    found = reopened()
    assert found.charges() == made
    assert [one.spend for one in found.charges()] == [first, second]
    assert [one.spend for one in found.charges("other")] == [second]
    assert found.of("tiny-1", "l-2") == made[1]
    assert found.of("tiny-1", "l-3") is None


def test_nothing_is_created_before_the_first_charge(tmp_path: Path, reopened: Reopened) -> None:
    assert reopened().charges() == []
    assert list(tmp_path.iterdir()) == []
    reopened().charge(spend())
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.db", "ledger-head.json"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_resumed_cycle_is_charged_once(reopened: Reopened) -> None:
    first = reopened().charge(spend("l-1"))
    found = reopened()
    assert found.charge(spend("l-1")) == first
    assert found.charge(spend("l-1", units=1001)) == first  # a record came in between
    assert found.charge(spend("l-1", job="other-1")) != first
    assert len(reopened().charges()) == 2


@pytest.mark.parametrize(
    "changes",
    [{"event": Event(0.1, 0.9, 10)}, {"event": Event(0.1, 1.0, 11)}, {"binding": "other"}, {"delta": 1e-6}],
)
def test_a_cycle_is_not_charged_again_with_other_numbers(reopened: Reopened, changes: dict) -> None:
    reopened().charge(spend("l-1"))
    with pytest.raises(Refused, match="was charged with") as refusal:
        reopened().charge(spend("l-1", **changes))
    assert refusal.value.code is Reason.POLICY
    assert len(reopened().charges()) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["j-1", "j-2"]), st.integers(0, 6), st.booleans()),
        max_size=12,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_order_of_cycles_and_restarts(
    tmp_path: Path, asked: list[tuple[str, str, int, bool]]
) -> None:
    """The ledger holds the first of each (job, cycle), in order; every head it gave is in the next chain."""
    folder = tmp_path / os.urandom(8).hex()
    folder.mkdir()
    ledger, expected, given_out = Ledger(folder, {}, lambda: NOON), {}, {}
    for binding, job, cycle, restarts in asked:
        known = expected.get((job, cycle))
        wanted = spend(str(cycle), binding=binding, job=job)
        if known is not None and known != wanted:
            with pytest.raises(Refused):
                ledger.charge(wanted)
        else:
            expected[job, cycle] = wanted
            given_out[ledger.charge(wanted).hash] = folder
        if restarts:
            ledger = Ledger(folder, given_out, lambda: NOON)
    assert [one.spend for one in Ledger(folder, given_out, lambda: NOON).charges()] == list(expected.values())


# --- what may have become of the files -------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path, reopened: Reopened) -> list[str]:
    """Heads of three charges, and under `before` the files as they were after two."""
    ledger = reopened()
    for number in range(2):
        ledger.charge(spend(f"l-{number}"))
    shutil.copytree(tmp_path, tmp_path / "before")
    ledger.charge(spend("l-2"))
    return heads(ledger)


def put_back(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(folder / "before" / name, folder / name)


def refuses(reopened: Reopened, says: str, **how: object) -> None:
    with pytest.raises(Corrupt, match=says) as error:
        reopened(**how)
    assert "Restore both from one backup" in str(error.value)


def test_missing(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    (tmp_path / "ledger.db").unlink()
    refuses(reopened, "ledger.db is gone and has had 3 events or more")


def test_missing_with_its_head(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    (tmp_path / "ledger.db").unlink()
    (tmp_path / "ledger-head.json").unlink()
    refuses(reopened, "lacks an event that .*outbox", signed={three[1]: tmp_path / "outbox"})


def test_its_head_is_missing(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    (tmp_path / "ledger-head.json").unlink()
    refuses(reopened, "ledger-head.json is gone")


def test_put_back(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    put_back(tmp_path, "ledger.db")
    refuses(reopened, "is older than ledger-head.json, which knows of 3 events")


def test_put_back_with_its_head(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    put_back(tmp_path, "ledger.db", "ledger-head.json")
    refuses(reopened, "lacks an event that .*u-1", signed={three[2]: tmp_path / "outbox" / "u-1"})
    assert len(reopened(signed={three[1]: tmp_path}).charges()) == 2  # no update named more


def test_another_history_of_the_same_length(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    head = (tmp_path / "ledger-head.json").read_bytes()
    put_back(tmp_path, "ledger.db", "ledger-head.json")
    reopened().charge(spend("l-other"))
    (tmp_path / "ledger-head.json").write_bytes(head)
    refuses(reopened, "is older than")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET steps = 1 WHERE sequence = 1",
        "UPDATE events SET noise_multiplier = '0x1.0000000000000p+3' WHERE sequence = 0",
        "UPDATE events SET units = 1.5 WHERE sequence = 0",
        "UPDATE events SET binding = x'00' WHERE sequence = 2",
        "DELETE FROM events WHERE sequence = 1",
        "DELETE FROM events WHERE sequence = 0",
        "UPDATE events SET sequence = 7 WHERE sequence = 2",
        "UPDATE events SET hash = previous, previous = hash WHERE sequence = 1",
    ],
)
def test_a_changed_row(tmp_path: Path, three: list[str], reopened: Reopened, statement: str) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute(statement).rowcount == 1
    refuses(reopened, "is not what was written")


def test_the_last_row_is_gone(tmp_path: Path, three: list[str], reopened: Reopened) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DELETE FROM events WHERE sequence = 2")
    refuses(reopened, "is older than")


@pytest.mark.parametrize("size", [0, 1, 100, 1024, 4096, 6000])
def test_cut_off(tmp_path: Path, three: list[str], reopened: Reopened, size: int) -> None:
    os.truncate(tmp_path / "ledger.db", size)
    refuses(reopened, "is damaged|is older than")


@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_seen_or_means_nothing(
    tmp_path: Path, reopened: Reopened, at: float, flip: int
) -> None:
    """Bytes that no row is made of may change: the rows are the ones that were written, or none are believed."""
    path = tmp_path / "ledger.db"
    if not (tmp_path / "whole").exists():
        ledger = reopened()
        for number in range(3):
            ledger.charge(spend(f"l-{number}"))
        shutil.copy(path, tmp_path / "whole")
    data = bytearray((tmp_path / "whole").read_bytes())
    data[int(at * len(data))] ^= flip
    path.write_bytes(data)
    try:
        found = [one.spend for one in reopened().charges()]
    except (Corrupt, Unavailable):
        return
    assert found == [spend(f"l-{number}") for number in range(3)]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"sequence": "2", "hash": ""}', '{"sequence": -2, "hash": ""}', "\xff"]
)
def test_its_head_is_damaged(tmp_path: Path, three: list[str], reopened: Reopened, text: str) -> None:
    (tmp_path / "ledger-head.json").write_bytes(text.encode("latin-1"))
    refuses(reopened, "ledger-head.json is damaged")


def test_replaced_under_a_running_agent(tmp_path: Path, reopened: Reopened) -> None:
    ledger = reopened()
    ledger.charge(spend("l-0"))
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(Corrupt, match="0 events instead of 1"):
        ledger.charge(spend("l-1"))


# --- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back(reopened: Reopened) -> None:
    reopened(now=NOON).charge(spend("l-0"))
    late = reopened(now=NOON - 61)
    with pytest.raises(Refused, match="set the clock") as refusal:
        late.charge(spend("l-1"))
    assert refusal.value.code is Reason.POLICY
    assert late.charge(spend("l-0"))  # it was paid for
    assert len(reopened().charges()) == 1
    reopened(now=NOON - 59).charge(spend("l-1"))  # a second here or there
    times = [one.time for one in reopened().charges()]
    assert times == sorted(times)
