"""The migrations make the tables the code uses."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select

from anabranch.errors import Conflict
from server.state.database import migrate, open_engine
from server.state.tables import metadata, versions, views


def test_migrations_make_the_schema(tmp_path: Path) -> None:
    database = tmp_path / "state.db"
    migrate(database)
    with open_engine(database, "BEGIN").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    migrate(database)  # a second start finds nothing to do


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "state.db"
    migrate(database)
    with open_engine(database, "BEGIN IMMEDIATE").begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Conflict, match="another release"):
        migrate(database)


def test_views_move_out_of_the_rows_of_versions(tmp_path: Path) -> None:
    """What a release before tiers wrote: version 0 as it is stored, version 1 with a view."""
    database = tmp_path / "state.db"
    migrate(database, "0005")
    with open_engine(database, "BEGIN IMMEDIATE").begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, name, status, reason, terms, terms_digest, manifest, submitted_at, submitted_index, "
            "head, unimproved) VALUES ('j', 'j', 'running', '', x'', '', x'', 0, 0, 1, 0)"
        )
        for row in ("0, 'p0', NULL, NULL, 400, 10", "1, 'p1', 'v1', 21, 30, 20"):
            connection.exec_driver_sql(
                "INSERT INTO versions (job, number, parameters, view, view_entry, bytes, entry, scalars, published_at) "
                f"VALUES ('j', {row}, '{{}}', 5.0)"
            )
    migrate(database)
    with open_engine(database, "BEGIN").connect() as connection:
        assert connection.execute(select(views)).all() == [("j", 1, "", "v1", 30, 21)]
        kept = connection.execute(select(versions.c.number, versions.c.parameters, versions.c.entry)).all()
        assert kept == [(0, "p0", 10), (1, "p1", 20)]
