"""How every program of ours ends: one exit code per side of blame, one shape of error.

With `--json` a command prints one JSON document on stdout, also when it fails. Errors always reach stderr.
"""

import errno
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


# A disk or a permission of this machine, not a bug of ours.
_OF_THE_SYSTEM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
)


def meant(error: Exception) -> Exception:
    """A disk that is full or read-only, or a file of somebody else, in words; any other error as it is."""
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        where = f"{error.filename}: " if error.filename else ""
        return Unavailable(
            f"{where}{error.strerror or error}; free some space or correct the permissions, then retry"
        )
    return error


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
    error = meant(error)
    if as_json:
        print(json.dumps(describe(error), ensure_ascii=False))
    if isinstance(error, AnabranchError) and not isinstance(error, Misuse):
        code = f" [{error.code.value}]" if isinstance(error, Refused) else ""
        print(f"{program}: {error}{code}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print(f"{program}: this is a bug of ours; please report the lines above", file=sys.stderr)
    return exit_code(error)
