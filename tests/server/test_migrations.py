"""The migrations make the tables the code uses."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from anabranch.errors import Conflict
from server.state.database import migrate, open_engine
from server.state.tables import metadata


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
