"""What a command prints: one JSON document on stdout with --json, else words for a person."""

import json
import logging
import sys
from typing import Any, Literal

import structlog
from rich.console import Console, RenderableType

from anabranch.errors import Unavailable


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as JSON or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(human)


def hint(error: Exception) -> str:
    """What to do next: what the error notes, or about a server that is not there."""
    if notes := getattr(error, "__notes__", ()):
        return "; ".join(notes)
    unreached = isinstance(error, Unavailable)
    return "`anabranch-silo check` names the hop that fails" if unreached else ""


def log_to_stderr(form: Literal["human", "json"], level: int = logging.INFO) -> None:
    """Structured logs on standard error, never on standard output: readable lines, or one JSON object each."""
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
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
