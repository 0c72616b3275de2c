"""Some dozen updates of the rough run, and that it notices when the history is not what silos were told."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from server.state import tables
from server.state.database import open_engine
from tests.chaos.leavers import Leavers
from tests.chaos.run import Run
from tests.simulation.history import Broken


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_rough_run_holds_and_a_changed_history_is_noticed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run = Run(tmp_path, seed=3, silos=3, versions=10, every=3.0)
    federation = run.federation

    def abort() -> None:
        federation.abort()
        if not federation.aborted:  # the server did not answer
            federation.after(1.0, abort)

    federation.after(15.0, lambda: federation.withdraw("silo-1", 5.0))
    federation.after(20.0, abort)
    federation.after(30.0, lambda: federation.revoke("silo-2"))
    try:
        run.go(updates=60, seconds=240.0)
        assert 0 < run.acknowledged <= run.updates
        assert federation.aborted
        assert len(federation.present()) == 2
        engine = open_engine(federation.real.server_dir / "state" / "state.db", "BEGIN IMMEDIATE")
        with engine.begin() as connection:
            lost = tables.updates.c.id == min(row.id for row in connection.execute(tables.updates.select()))
            connection.execute(tables.updates.delete().where(lost))
        with pytest.raises(Broken):
            run._check()
    finally:
        run.federation.close()
        run.report()


RECEIVED = "update.received", SimpleNamespace(silo="a", update="u")
WITHDRAWN = "job.withdrawn", SimpleNamespace(silo="a")
ABORTED = "job.aborted", SimpleNamespace()
REVOKED = "silo.revoked", SimpleNamespace(silo="a", updates=("u",))
MERGED = "aggregation.performed", SimpleNamespace(inputs=[SimpleNamespace(silo="a", update="u")])


def retired(reason: str) -> tuple[str, SimpleNamespace]:
    return "update.retired", SimpleNamespace(update="u", reason=reason)


@pytest.mark.parametrize(
    "story",
    [
        (WITHDRAWN, RECEIVED),
        (RECEIVED, WITHDRAWN, MERGED),
        (RECEIVED, WITHDRAWN, retired("superseded")),
        (RECEIVED, WITHDRAWN),
        (REVOKED, RECEIVED),
        (RECEIVED, REVOKED),
        (RECEIVED, retired("superseded"), REVOKED),
        (REVOKED, ("lease.issued", SimpleNamespace(silo="a"))),
        (ABORTED, RECEIVED),
        (RECEIVED, ABORTED, retired("withdrawn")),
    ],
)
def test_who_has_left_and_is_heard_or_still_waits_is_noticed(
    story: tuple[tuple[str, SimpleNamespace], ...],
) -> None:
    leavers = Leavers()
    with pytest.raises(Broken):
        leavers.tell(("job-1", *one) for one in story)


def test_who_leaves_in_order_is_counted() -> None:
    again = "job.approved", SimpleNamespace(silo="a")
    story = [
        RECEIVED,
        WITHDRAWN,
        retired("withdrawn"),
        again,
        RECEIVED,
        retired("withdrawn"),
        REVOKED,
        ABORTED,
    ]
    told = Leavers().tell(("job-1", *one) for one in story)
    assert told == {"job.withdrawn": 1, "update.retired(withdrawn)": 2, "silo.revoked": 1, "job.aborted": 1}
