"""What a command prints, and the number it exits with.

With `--json` a command prints one JSON document on stdout, also when it fails; without it, a table or a sentence for
a person. Errors always reach stderr.
"""

import json
import sys
import traceback
from typing import Any

from rich.console import Console, RenderableType

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Refused, Unavailable

OK, FAILED, USAGE, UNAVAILABLE, CORRUPT, BUG = 0, 1, 2, 3, 4, 70


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as JSON or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console().print(human)


def exit_code(error: Exception) -> int:
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


def describe(error: Exception) -> dict[str, Any]:
    """`{"error": {"kind", "code", "message"}}`; `code` is a reason code, or empty."""
    kind = type(error).__name__.lower() if isinstance(error, AnabranchError) else "bug"
    code = error.code.value if isinstance(error, Refused) else ""
    return {"error": {"kind": kind, "code": code, "message": str(error)}}


def fail(error: Exception, as_json: bool) -> int:
    """Print an error for the person at the terminal and return the exit code."""
    if as_json:
        print(json.dumps(describe(error), ensure_ascii=False))
    if isinstance(error, AnabranchError) and not isinstance(error, Misuse):
        code = f" [{error.code.value}]" if isinstance(error, Refused) else ""
        print(f"anabranch: {error}{code}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print("anabranch: this is a bug of ours; please report the lines above", file=sys.stderr)
    return exit_code(error)
