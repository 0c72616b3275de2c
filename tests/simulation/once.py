"""What the simulation computes once in its process, because a model of 15 numbers makes it most of a decision's time.

Only functions of their arguments alone: what they say of the same bytes again is what they said before. The auditor's own
are left as they are.
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import structlog

import server.spool
from anabranch.tlog import checkpoint, receipt
from anabranch.tlog.note import NoteVerifier
from anabranch.wire import canonical, dsse, statements
from server import inputs, startup
from server.state import database
from simulator import sqlite

KEPT = 1 << 12
short = True  # a history that will be audited goes the long way to SQLite, so that both are walked
QUIET = structlog.make_filtering_bound_logger(50)


def open_engine(path: Path, begin: str) -> Any:
    return sqlite.Engine(path, begin) if short else database.open_engine(path, begin)


def prepare() -> None:
    """For the rest of this process: nothing logs, a few bytes are a sync's worth, and what is pure is computed once.

    After everything that is simulated was imported.
    """
    structlog.configure(wrapper_class=QUIET)
    server.spool.WRITE_OUT = 128
    for pure, kept in (
        (receipt.parse_entry, KEPT),
        (dsse.verify_signature, KEPT),
        (dsse.parse_envelope, KEPT),
        (statements.parse_update, KEPT),
        (canonical.from_hexfloat, KEPT),
        (canonical.from_utc, KEPT),
        (canonical.utc, KEPT),
    ):
        _everywhere(pure, lru_cache(kept)(pure))
    _everywhere(checkpoint.open_checkpoint, _open_once(checkpoint.open_checkpoint))
    migrate = startup.migrate  # every database here is a copy of one that was migrated
    _put(startup, "migrate", lambda path: None if path.exists() else migrate(path))
    _put(database, "create_engine", _compile_once(database.create_engine))
    _put(inputs, "ThreadPoolExecutor", Inline)


class Inline:
    """A thread pool whose thread is the caller: here nothing is computed beside the hashing that could be waited for."""

    def __init__(self, *_: Any) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def submit(self, work: Callable[..., Any], *given: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given))
        except Exception as error:
            done.set_exception(error)
        return done


def _open_once(open_checkpoint: Any) -> Any:
    verifiers: dict[tuple[str, bytes], NoteVerifier] = {}  # every silo has its own object for the one key

    @lru_cache(KEPT)
    def opened(note: str, key: tuple[str, bytes], origin: str) -> Any:
        return open_checkpoint(note, verifiers[key], origin)

    def once(note: str, verifier: NoteVerifier, origin: str) -> Any:
        key = verifier.name, verifier._public.public_bytes_raw()
        verifiers.setdefault(key, verifier)
        return opened(note, key, origin)

    return once


def _compile_once(create_engine: Any) -> Any:
    """Each life of a server has two engines, and each of them would compile every statement afresh."""
    first: list[Any] = []

    def create(*given: Any, **more: Any) -> Any:
        engine = create_engine(*given, **more)
        first.append(engine) if not first else None
        engine.dialect = engine.pool._dialect = first[0].dialect
        engine._compiled_cache = first[0]._compiled_cache
        return engine

    return create


def _everywhere(work: Any, instead: Any) -> None:
    """In whatever module of ours it was imported, but the auditor."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("anabranch", "server", "silo_agent", "tests"):
            for word, value in list(vars(module).items()):
                if value is work:
                    _put(module, word, instead)


def _put(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)
