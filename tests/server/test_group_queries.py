"""What fedcompass asks of the state store costs the same however long a job has run: its plans use the narrow indexes."""

from pathlib import Path

import pytest
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

from server import groups
from server.state.database import migrate, open_engine


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (groups._AT_WORK, "leases_status (status=?"),
        (groups._ARRIVED, "updates_job_status (job=? AND status=?"),
        (groups._NEWEST, "leases_newest (silo=? AND job=?"),
        (groups._MERGED, "updates_merged (job=? AND version=?"),
    ],
)
def test_no_query_walks_through_the_history(query: Select[tuple[object]], index: str, tmp_path: Path) -> None:
    migrate(tmp_path / "state.db")
    values = {"job": "j", "silo": "s", "head": 1, "statuses": ["received", "frozen"]}
    text = query.params(values).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    with open_engine(tmp_path / "state.db", "BEGIN").connect() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert index in plan[0], plan
