"""The road from a room's statement to SQLite, without what SQLAlchemy's engine does on it for other databases.

What it keeps: SQLAlchemy compiles every statement, SQLite runs every statement, transactions open, nest and end with the
same words, and errors are SQLAlchemy's. What it leaves out: pool, events, execution contexts and result processing,
which took most of a decision's time. It knows the calls our rooms make and no other.
"""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from server.state import database

Params = dict[str, Any]
Make = Callable[[Sequence[Any]], Any]

_KEPT = "_plans of the simulation"
_row: Any = namedtuple  # mypy wants to know the names
_dialect: Any = sqlite.dialect(paramstyle="qmark")
_compiled: dict[Any, Any] = {}
_texts: dict[str, "Shape"] = {}

# One process and one thread have the file, and nobody needs it once that process has died.
ALONE = ("locking_mode=EXCLUSIVE", "journal_mode=MEMORY", "synchronous=OFF", "foreign_keys=ON")


class Engine:
    """Connections to one file, each open until `dispose`."""

    def __init__(self, path: Path, begin: str) -> None:
        self._path, self._begin = path, begin
        self._idle: list[sqlite3.Connection] = []

    def connect(self) -> "Connection":
        """What was not committed when its block is left is rolled back."""
        raw = self._idle.pop() if self._idle else _open(self._path, database.PRAGMAS)
        return Connection(raw, self._begin, self._leave)

    @contextmanager
    def begin(self) -> Iterator["Connection"]:
        with self.connect() as connection:
            connection.open()
            yield connection
            connection.run("COMMIT", ())

    def dispose(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _leave(self, raw: sqlite3.Connection) -> None:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        self._idle.append(raw)


class Alone:
    """The readers and the writer of one file by turns on one connection, which then locks and syncs nothing.

    Only for one thread, and for a file that nobody needs after its process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw: sqlite3.Connection | None = None

    def connect(self) -> "Connection":
        """A reader: it has no transaction of its own, and sees what was written last."""
        if self._raw is None:
            self._raw = _open(self._path, ALONE)
        return Connection(self._raw, "", lambda raw: None)

    @contextmanager
    def begin(self) -> Iterator["Connection"]:
        connection = self.connect()
        connection.run("BEGIN", ())
        try:
            yield connection
        except BaseException:
            connection.run("ROLLBACK", ())
            raise
        connection.run("COMMIT", ())

    def dispose(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None


def _open(path: Path, pragmas: Sequence[str]) -> sqlite3.Connection:
    raw = sqlite3.connect(
        path, timeout=30, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    for pragma in pragmas:
        raw.execute(f"PRAGMA {pragma}")
    return raw


class Connection:
    def __init__(
        self, raw: sqlite3.Connection, begin: str, leave: Callable[[sqlite3.Connection], None]
    ) -> None:
        """`begin`: how a transaction opens with the first statement; "" when none does."""
        self._raw, self._begin, self._leave = raw, begin, leave

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._leave(self._raw)

    def open(self) -> None:
        if self._begin and not self._raw.in_transaction:
            self.run(self._begin, ())

    def execute(self, statement: Any, params: Params | Sequence[Params] | None = None) -> "Result":
        self.open()
        if params is None:
            params = {}
        elif not isinstance(params, dict):
            return self._many(statement, params)
        plan = _plan(statement, tuple(params), False)
        sql, values = plan.bind(params)
        return Result(self.run(sql, values), plan)

    def _many(self, statement: Any, rows: Sequence[Params]) -> "Result":
        plan = _plan(statement, tuple(rows[0]), len(rows) > 1)
        bound = [plan.bind(row) for row in rows]
        return Result(self.run(bound[0][0], [values for _, values in bound], many=True), plan)

    def exec_driver_sql(self, sql: str, values: tuple[Any, ...] = ()) -> "Result":
        self.open()
        return Result(self.run(sql, values), _texts.setdefault(sql, Shape()))

    def begin_nested(self) -> "Savepoint":
        self.open()
        self.run("SAVEPOINT one", ())
        return Savepoint(self)

    def run(self, sql: str, values: Any, many: bool = False) -> sqlite3.Cursor:
        """Raises what SQLAlchemy raises for what SQLite raises."""
        try:
            return self._raw.executemany(sql, values) if many else self._raw.execute(sql, values)
        except sqlite3.Error as error:
            wrapped: Any = DBAPIError.instance(sql, values, error, sqlite3.Error, dialect=_dialect)
            raise wrapped from error


class Savepoint:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def commit(self) -> None:
        self._connection.run("RELEASE one", ())

    def rollback(self) -> None:
        self._connection.run("ROLLBACK TO one", ())
        self._connection.run("RELEASE one", ())


class Shape:
    """What the rows of one statement are made into, known once there was one."""

    make: Make | None = None

    def of(self, cursor: sqlite3.Cursor) -> Make:
        if self.make is None:
            names = [column[0] for column in cursor.description]
            self.make = _row("Row", names, rename=True)._make
        return self.make


class Result:
    """A room takes all of it, or its first row, and leaves it; only a walk through it leaves the cursor open meanwhile."""

    def __init__(self, cursor: sqlite3.Cursor, shape: Shape) -> None:
        self._cursor, self._shape = cursor, shape

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    def all(self) -> list[Any]:
        rows = self._cursor.fetchall()
        return list(map(self._shape.of(self._cursor), rows)) if rows else []

    def __iter__(self) -> Iterator[Any]:
        return map(self._shape.of(self._cursor), self._cursor)

    def first(self) -> Any:
        row = self._first()
        return row and self._shape.of(self._cursor)(row)

    def one(self) -> Any:
        [row] = self.all()
        return row

    def scalar(self) -> Any:
        row = self._first()
        return row and row[0]

    def scalar_one(self) -> Any:
        [row] = self._cursor.fetchall()
        return row[0]

    def scalars(self) -> "Scalars":
        return Scalars(row[0] for row in self._cursor.fetchall())

    def _first(self) -> Any:
        row = self._cursor.fetchone()
        self._cursor.close()
        return row


class Scalars(list[Any]):
    def all(self) -> list[Any]:
        return self


class Plan(Shape):
    """A compiled statement, with the values that stand in it."""

    def __init__(self, compiled: Any, given: Any, collected: Any, names: tuple[str, ...]) -> None:
        self._compiled = compiled
        self._lists: Sequence[str] = [compiled.bind_names[bind] for bind in compiled.post_compile_params]
        values = compiled.construct_params(
            extracted_parameters=given, escape_names=False, _collected_params=collected, _check=False
        )
        for column in compiled.insert_prefetch or ():
            values[column.key] = column.default.arg
        self._values = {name: value for name, value in values.items() if name not in names}
        self._expanded: dict[tuple[int, ...], tuple[str, Sequence[str]]] = {}

    def bind(self, params: Params) -> tuple[str, Sequence[Any]]:
        values = self._values | params if self._values else params
        if not self._lists:
            return self._compiled.string, [values[name] for name in self._compiled.positiontup or ()]
        sizes = tuple(len(values[name]) for name in self._lists)
        if sizes not in self._expanded:
            made = self._compiled._process_parameters_for_postcompile(
                dict(values)
            )  # it takes out what it expands
            self._expanded[sizes] = made.statement, made.positiontup
        sql, order = self._expanded[sizes]
        each = {f"{name}_{place}": one for name in self._lists for place, one in enumerate(values[name], 1)}
        return sql, [each[name] if name in each else values[name] for name in order]


def _plan(statement: Any, names: tuple[str, ...], many: bool) -> Plan:
    """Built once for each statement that outlives its call, and compiled once for all that only look alike."""
    own = vars(statement)
    whose, kept = own.get(_KEPT, (0, {}))
    if whose != id(statement):  # a statement made from another one begins with what was kept with that
        kept = {}
        own[_KEPT] = id(statement), kept
    plan: Plan | None = kept.get((names, many))
    if plan is None:
        compiled, given, collected, _ = statement._compile_w_cache(
            _dialect, compiled_cache=_compiled, column_keys=sorted(names), for_executemany=many
        )
        plan = kept[names, many] = Plan(compiled, given, collected, names)
    return plan
