"""What the simulation computes once in its process, because a model of 15 numbers makes it most of a decision's time.

Only functions of their arguments alone: what they say of the same bytes again is what they said before. The auditor's own
are left as they are.
"""

from functools import lru_cache
from typing import Any

import structlog

import server.spool
from anabranch import terms
from anabranch.tlog import checkpoint, receipt
from anabranch.tlog.note import NoteVerifier
from anabranch.wire import dsse, statements
from server import aggregation, intake, jobs, lifecycle, scheduling, startup
from server.state import database, records
from silo_agent import approval
from tests.simulation import history, invariants

KEPT = 1 << 12
QUIET = structlog.make_filtering_bound_logger(50)


def prepare() -> None:
    """For the rest of this process: nothing logs, a few bytes are a sync's worth, and what is pure is computed once."""
    structlog.configure(wrapper_class=QUIET)
    server.spool.WRITE_OUT = 128
    parse = lru_cache(256)(terms.parse_terms)
    for module in (aggregation, intake, jobs, lifecycle, records, scheduling, approval):
        _put(module, "parse_terms", parse)
    entry = lru_cache(KEPT)(receipt.parse_entry)
    for module in (receipt, intake, history, invariants):
        _put(module, "parse_entry", entry)
    _put(aggregation, "parse_manifest", lru_cache(64)(aggregation.parse_manifest))
    for name in ("verify_signature", "parse_envelope"):
        _put(dsse, name, lru_cache(KEPT)(getattr(dsse, name)))
    _put(statements, "parse_update", lru_cache(KEPT)(statements.parse_update))
    _put(checkpoint, "open_note", _open_note_once(checkpoint.open_note))
    _put(database, "create_engine", _compile_once(database.create_engine))
    migrate = startup.migrate  # every database here is a copy of one that was migrated
    _put(startup, "migrate", lambda path: None if path.exists() else migrate(path))


def _open_note_once(open_note: Any) -> Any:
    verifiers: dict[tuple[str, bytes], NoteVerifier] = {}  # every silo has its own object for the one key

    @lru_cache(KEPT)
    def opened(note: str, key: tuple[str, bytes]) -> str:
        return str(open_note(note, verifiers[key]))

    def once(note: str, verifier: NoteVerifier) -> str:
        key = verifier.name, verifier._public.public_bytes_raw()
        verifiers.setdefault(key, verifier)
        return opened(note, key)

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


def _put(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)
