"""A few dozen seeds of the simulation, and that it notices when something is wrong."""

from typing import get_args

import pytest

from server import aggregation, intake, lifecycle
from server.aggregation import Aggregation
from server.audit.register import CheckpointRegister
from server.gaps import Gap
from tests.simulation.drawing import draw
from tests.simulation.operations import (
    Abort,
    Advance,
    Aggregate,
    Approve,
    FullDisk,
    Join,
    Kill,
    Operation,
    Prune,
    Reevaluate,
    Round,
    SubmitJob,
    Turn,
)
from tests.simulation.search import Found, Simulator, shrink

pytestmark = pytest.mark.soak  # it replaces parts of the rooms for a whole process: `make soak` runs it alone

SEEDS = 12
OPERATIONS = 40
STAGE: list[Operation] = [Join(0), Join(1), SubmitJob(1), Approve(0, 0), Approve(1, 0)]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_history_holds(simulator: Simulator, seed: int) -> None:
    result = simulator.seed(seed, OPERATIONS, audit=seed % 8 == 0)
    assert not isinstance(result, Found), f"\n{result}"


@pytest.mark.parametrize("gap", Gap)
def test_every_gap_is_reached_and_survived(simulator: Simulator, gap: Gap) -> None:
    """With the WAL whole, torn in the middle of the commit, and with nothing of the commit written."""
    for tear in (0.0, 0.5, 1e-9) if gap.endswith(".committed") else (0.0,):
        work: list[Operation] = [Round(0, True), Turn(0, 0), Aggregate(0), Advance(600.0), Prune()]
        sequence = [*STAGE, Kill(gap, tear=tear), *work]
        tally = simulator.run(1, sequence, audit=False)
        assert tally.faults[f"killed at {gap}"] == 1, tally.faults


def test_a_full_disk_is_met_and_survived(simulator: Simulator) -> None:
    full: list[Operation] = [FullDisk(3), Round(0, False), FullDisk(1), Aggregate(0)]
    tally = simulator.run(1, [*STAGE, *full, Round(0, True)], audit=False)
    assert tally.faults["disk full"] > 1, tally.faults


def test_an_evaluation_sent_again_is_the_same_evaluation(simulator: Simulator) -> None:
    evaluated: list[Operation] = [Round(0, True), Turn(0, 0), Turn(1, 0)]
    again: list[Operation] = [Reevaluate(0, 0, 0), Reevaluate(0, 0, 1)]
    tally = simulator.run(1, [*STAGE, *evaluated, *again], audit=False)
    assert tally.faults["evaluation sent again"] == tally.faults["evaluation under another identity"] == 1


def test_one_seed_is_one_history(simulator: Simulator) -> None:
    one, two = (simulator.run(7, draw(7, OPERATIONS, 5), audit=False) for _ in range(2))
    assert (one.faults, one.updates, one.receipts) == (two.faults, two.updates, two.receipts)


@pytest.mark.parametrize("seed", range(7, 10))
def test_both_roads_to_sqlite_tell_one_history(simulator: Simulator, seed: int) -> None:
    """Beside the update's ids nothing of it is chance: what was refused and what was faulty is counted alike."""
    short, long = (simulator.run(seed, draw(seed, 4 * OPERATIONS, 5), audit) for audit in (False, True))
    assert (short.faults, short.updates, short.receipts) == (long.faults, long.updates, long.receipts)


def test_every_operation_is_drawn() -> None:
    drawn = {type(operation) for seed in range(40) for operation in draw(seed, 400, 5)}
    assert drawn == set(get_args(Operation))


def test_a_failing_sequence_is_made_small() -> None:
    sequence: list[Operation] = [*STAGE, *(Advance(float(i)) for i in range(40)), Aggregate(0)]
    small = shrink(sequence, lambda part: Join(1) in part and Advance(17.0) in part)
    assert small == [Join(1), Advance(17.0)]


# --- a server with a bug is found out ---------------------------------------------------------------------------


def _found(simulator: Simulator, sequence: list[Operation]) -> str:
    result = simulator.failure(1, sequence)
    assert isinstance(result, str), "nobody noticed"
    return result


def test_an_update_merged_twice_is_noticed(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = aggregation._abandon
    publish = Aggregation._publish

    def again(self, tx, frozen, snapshot):  # type: ignore[no-untyped-def]
        done = publish(self, tx, frozen, snapshot)
        honest(tx, frozen)
        ids = [one.update for one in frozen.inputs]
        tx.connection.execute(
            aggregation.update(aggregation.updates)
            .where(aggregation.updates.c.id.in_(ids))
            .values(status="received")
        )
        return done

    monkeypatch.setattr(Aggregation, "_publish", again)
    assert _found(simulator, [*STAGE, Round(0, True), Round(0, True)]) != ""


def test_a_decision_told_before_it_is_durable_is_noticed(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The register is moved, and the callers answered, though power was lost before the commit was synced."""
    monkeypatch.setattr(intake.Intake, "_known", lambda self, silo, update: None)
    assert _found(simulator, [*STAGE, Kill("intake.registered"), Turn(0, 0), Turn(0, 0), Turn(0, 0)]) != ""


def test_a_lost_register_move_is_noticed(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointRegister, "advance", lambda self, expected, note: None)
    assert _found(simulator, [*STAGE, Kill("intake.committed"), Turn(0, 0), Turn(0, 0)]) != ""


def test_an_update_that_is_forgotten_is_noticed(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "retire", lambda tx, actor, update_id, reason: None)
    waiting: list[Operation] = [Join(0), Join(1), SubmitJob(0), Approve(0, 0), Approve(1, 0), Turn(0, 0)]
    assert "has no end" in _found(simulator, [*waiting, Abort(0)])


def test_a_job_that_waits_for_ever_is_noticed(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_due_evaluation_is_in", lambda tx, job, terms: False)
    assert "Stuck" in _found(simulator, [*STAGE, Round(0, True)])
