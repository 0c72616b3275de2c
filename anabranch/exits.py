"""How every program of ours ends: one exit code per side of blame, one shape of error.

With `--json` a command prints one JSON document on stdout, also when it fails. Errors always reach stderr.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import typer

from anabranch.errors import AnabranchError, Conflict, Corrupt, Misuse, Reason, Refused, Unavailable

OK: Final = 0
FAILED: Final = 1  # refused, or it did not hold
USAGE: Final = 2
UNAVAILABLE: Final = 3  # retry later
CORRUPT: Final = 4  # storage is not what was written
BUG: Final = 70


INTERRUPTED: Final = 130  # Ctrl-C

# What a person does about what the system says; anything else is told in its words.
_REMEDIES: Final[Mapping[int, str]] = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a folder is meant, and there is a file: name another place",
    errno.EEXIST: "something else is there already: name another place",
    errno.EISDIR: "a file is meant, and there is a folder: name another place",
    errno.EACCES: "correct the permissions, or run it as the owner",
    errno.EPERM: "correct the permissions, or run it as the owner",
    errno.EROFS: "the disk is mounted read-only: name another place",
    errno.ENOSPC: "free some space, then retry",
    errno.EDQUOT: "free some space, then retry",
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address: choose another",
    errno.EMFILE: "allow more open files (ulimit -n), then retry",
    errno.ENAMETOOLONG: "name it shorter",
    errno.ELOOP: "a link points at itself: name another place",
}


def meant(error: Exception) -> Exception:
    """What the system would not let us do, in words; any other error as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        what = os.strerror(error.errno)
        return Unavailable(f"{where}{what}; {_REMEDIES.get(error.errno, 'correct that, then retry')}")
    return error


def run(program: str, app: typer.Typer, hint: Callable[[Exception], str] = lambda error: "") -> NoReturn:
    """The entry point of every program. `hint` may add a line to an error that is not our bug."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        code = _gone()
    except Exception as error:
        try:
            code = _told(program, error, as_json, hint)
            sys.stdout.flush()
        except BrokenPipeError:
            code = _gone()
    sys.exit(code or OK)


def _told(program: str, error: Exception, as_json: bool, hint: Callable[[Exception], str]) -> int:
    misused = _misused(error)
    if misused is not None:
        if as_json:
            print(
                json.dumps({"error": {"kind": "usage", "code": "", "message": misused}}, ensure_ascii=False)
            )
        print(misused, file=sys.stderr)
        return USAGE
    if isinstance(error, typer.Abort):
        error = Refused(Reason.MALFORMED, "nobody answered the question: nothing was done; --yes answers it")
    code = fail(program, error, as_json)
    if code != BUG and (more := hint(error)):
        print(f"{program}: {more}", file=sys.stderr)
    return code


def _misused(error: Exception) -> str | None:
    """What typer says of a command line it does not understand; None for every other error.

    Its class for that is private, and is another one in each of its releases.
    """
    told = getattr(error, "format_message", None)
    if told is None:
        return None
    context = getattr(error, "ctx", None)
    if context is None:
        return str(told())
    if not told():  # no command at all: the help is the answer
        return str(context.get_help())
    return f"{context.command_path}: {told()}\nthe options are in: {context.command_path} --help"


def _gone() -> int:
    """Whoever read what we print has left (`| head`): there is nobody to tell, and Python shall not try at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return FAILED


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
