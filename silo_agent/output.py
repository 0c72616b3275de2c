"""What a command prints, and the number it exits with: one JSON document on stdout with --json, else for a person."""

import json
import logging
import sys
import traceback
from typing import Any, Literal

import structlog
from rich.console import Console, RenderableType

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Refused, Unavailable

OK, FAILED, USAGE, UNAVAILABLE, CORRUPT, BUG = 0, 1, 2, 3, 4, 70


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as JSON or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(human)


def exit_code(error: BaseException) -> int:
    """0 ok · 1 refused or failed · 2 usage · 3 unavailable, retry · 4 corrupt storage · 70 our bug."""
    match error:
        case Refused() | Conflict():
            return FAILED
        case Unavailable():
            return UNAVAILABLE
        case Corrupt():
            return CORRUPT
        case _:
            return BUG


def fail(error: BaseException, as_json: bool) -> int:
    """Tell the person at the terminal what went wrong; the exit code."""
    code = error.code.value if isinstance(error, Refused) else ""
    if as_json:
        kind = next(
            (k.__name__.lower() for k in (Refused, Conflict, Unavailable, Corrupt) if isinstance(error, k)),
            "bug",
        )
        print(json.dumps({"error": {"kind": kind, "code": code, "message": str(error)}}, ensure_ascii=False))
    if isinstance(error, AnabranchError) and not isinstance(error, Misuse):
        print(f"anabranch-silo: {error}" + (f" [{code}]" if code else ""), file=sys.stderr)
    else:
        traceback.print_exception(error)
        print("anabranch-silo: this is a bug of ours; please report the lines above", file=sys.stderr)
    return exit_code(error)


def log_to_stderr(form: Literal["human", "json"]) -> None:
    """Structured logs on standard error: readable lines, or one JSON object each."""
    human = form == "human"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if human
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
