"""How every program of ours ends: one exit code per side of blame, one shape of error.

With `--json` a command prints one JSON document on stdout, also when it fails. Errors always reach stderr.
"""

import json
import sys
import traceback
from typing import Any, Final

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Refused, Unavailable

OK: Final = 0
FAILED: Final = 1  # refused, or it did not hold
USAGE: Final = 2
UNAVAILABLE: Final = 3  # retry later
CORRUPT: Final = 4  # storage is not what was written
BUG: Final = 70


def exit_code(error: Exception) -> int:
    """The code a program ends with when `error` reaches the top."""
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


def fail(program: str, error: Exception, as_json: bool) -> int:
    """Print an error for the person at the terminal and return the exit code."""
    if as_json:
        print(json.dumps(describe(error), ensure_ascii=False))
    if isinstance(error, AnabranchError) and not isinstance(error, Misuse):
        code = f" [{error.code.value}]" if isinstance(error, Refused) else ""
        print(f"{program}: {error}{code}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print(f"{program}: this is a bug of ours; please report the lines above", file=sys.stderr)
    return exit_code(error)
