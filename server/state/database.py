"""Opening the state store: SQLite in WAL mode with `synchronous=FULL`, migrated by alembic."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from anabranch.errors import Conflict, Corrupt, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
POOL = 16  # connections kept open for reuse; threads bound how many there are at a time


def open_engine(path: Path, begin: str) -> Engine:
    """An engine whose transactions open with `begin`: BEGIN for readers, BEGIN IMMEDIATE for the one writer."""
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"check_same_thread": False, "timeout": 30},
        pool_size=POOL,
        max_overflow=-1,  # a thread that holds a snapshot may need another: with a bound they wait for each other
    )

    @event.listens_for(engine, "connect")
    def _configure(dbapi: Any, _record: Any) -> None:
        dbapi.isolation_level = None  # SQLAlchemy opens transactions, not the driver: savepoints then work
        for pragma in PRAGMAS:
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def migrate(path: Path, revision: str = "head") -> None:
    """Bring the schema to `revision`; creates the database when it is new. Raises Conflict for a newer one."""
    engine = open_engine(path, "BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            connection.commit()
    except CommandError as error:
        raise Conflict(
            f"{path} was written by another release ({error}); run that release, or a newer one"
        ) from error
    finally:
        engine.dispose()


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Around what reads the database at `path` first. Raises Corrupt for a file that is none, Unavailable for a busy one."""
    try:
        yield
    except OperationalError as error:
        raise Unavailable(
            f"{path}: {error.orig}; see that its disk and permissions are right, then retry"
        ) from error
    except DatabaseError as error:
        raise Corrupt(f"{path}: {error.orig}; restore it from a backup") from error


@dataclass(frozen=True)
class Reader:
    """Read-only snapshots; any thread, never the event loop."""

    engine: Engine

    def connect(self) -> AbstractContextManager[Connection]:
        return self.engine.connect()


def open_reader(path: Path) -> Reader:
    return Reader(open_engine(path, "BEGIN"))
