"""Some dozen updates of the rough run, and that it notices when the history is not what silos were told."""

from pathlib import Path

import pytest

from server.state import tables
from server.state.database import open_engine
from tests.chaos.run import Run
from tests.simulation.history import Broken

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def test_a_rough_run_holds_and_a_changed_history_is_noticed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run = Run(tmp_path, seed=3, silos=2, versions=10, every=3.0)
    try:
        run.go(updates=60, seconds=240.0)
        assert run.updates > 0
        assert run.acknowledged == run.updates
        engine = open_engine(run.federation.real.server_dir / "state" / "state.db", "BEGIN IMMEDIATE")
        with engine.begin() as connection:
            lost = tables.updates.c.id == min(row.id for row in connection.execute(tables.updates.select()))
            connection.execute(tables.updates.delete().where(lost))
        with pytest.raises(Broken):
            run._check()
    finally:
        run.federation.close()
        run.report()
