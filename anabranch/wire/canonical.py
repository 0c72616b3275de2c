"""One byte string per value: canonical JSON, hexadecimal floats, digests and times.

Everything that is hashed or signed goes through here, so two honest implementations cannot disagree about
bytes. JSON numbers are integers only, because RFC 8785 reformats floats and 64-bit integers do not survive a
JavaScript reader: reals travel as C99 hexadecimal floats, large integers as decimal text, times as RFC 3339
text.
"""

import contextlib
import hashlib
import json
import math
import re
from datetime import UTC, datetime
from typing import Any, NoReturn

import rfc8785

from anabranch.errors import Misuse, Reason, Refused

DEPTH = 64  # lists and objects in each other; without a bound it is the reader's stack that decides
MAX_INT = 2**53 - 1  # the largest integer that every JSON reader keeps exact
HEXFLOAT = r"^-?(0x0\.0p\+0|0x0\.[0-9a-f]{13}p-1022|0x1\.[0-9a-f]{13}p[+-][0-9]{1,4})$"
UTC_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"

_HEXFLOAT = re.compile(HEXFLOAT)
_NO_BRACKET = re.compile(r'"(?:[^"\\]|\\.?)*"?|[^][{}"]+', re.DOTALL)  # linear, also where nothing is closed
_UTC_TIME = re.compile(UTC_TIME)


def encode(value: Any) -> bytes:
    """Canonical JSON (RFC 8785), UTF-8, of dicts, lists, tuples, strings, integers, booleans and None.

    Raises Misuse on floats, on integers beyond ±(2**53 - 1), on keys that are not strings and on lone
    surrogates.
    """
    try:
        if _plain(value):
            return _WRITER.encode(value).encode("utf-8")
        _refuse_floats(value)
        return rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"no canonical JSON for this value: {error}") from error


def decode(data: bytes) -> Any:
    """The value of canonical JSON. Raises Refused(MALFORMED) when `data` is not byte for byte what `encode`
    writes, which also refuses duplicate keys, white space, floats, integers beyond ±(2**53 - 1) and a byte
    order mark; or when it nests deeper than DEPTH.
    """
    try:
        text = data.decode("utf-8")
        if not shallow(text):
            raise ValueError(f"it nests deeper than {DEPTH} levels")
        value = _READER.decode(text)
        canonical = _WRITER.encode(value).encode("utf-8") if _plain(value) else rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not canonical JSON: {_brief(error)}") from error
    if canonical != data:
        raise Refused(Reason.MALFORMED, "JSON is not in canonical form (RFC 8785)")
    return value


def shallow(text: str) -> bool:
    """Whether JSON `text` nests at most DEPTH levels; of what is no JSON, whether its brackets do."""
    if text.count("[") + text.count("{") <= DEPTH:
        return True
    depth = 0
    for bracket in _NO_BRACKET.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            return False
    return True


def hexfloat(x: float) -> str:
    """`3.0` → `"0x1.8000000000000p+1"`: the exact double as C99 text. Raises Misuse unless finite."""
    if not math.isfinite(x):
        raise Misuse(f"{x} has no hexadecimal float; only finite numbers are recorded")
    return float(x).hex()


def from_hexfloat(text: str) -> float:
    """Inverse of `hexfloat`. Raises Refused(MALFORMED) unless `text` is exactly what `hexfloat` writes."""
    if _HEXFLOAT.fullmatch(text):
        with contextlib.suppress(OverflowError):
            x = float.fromhex(text)
            if x.hex() == text:
                return x
    raise Refused(
        Reason.MALFORMED, f"{text[:40]!r} is not a canonical hexadecimal float such as 0x1.8000000000000p+1"
    )


def sha256(data: bytes) -> str:
    """Lowercase hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def utc(seconds: float) -> str:
    """Unix seconds → `"2026-11-20T00:00:00.000000Z"`. Raises Misuse outside the years 1 to 9999."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Misuse(f"{seconds} is not a time: {error}") from error
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_utc(text: str) -> float:
    """Inverse of `utc`. Raises Refused(MALFORMED) on any other spelling, on dates that do not exist and, from
    the year 2242, on microseconds that a double cannot hold.
    """
    if _UTC_TIME.fullmatch(text):
        try:
            seconds = datetime.fromisoformat(text).timestamp()
            if "1970" <= text < "2242" or utc(seconds) == text:
                return seconds
        except (ValueError, Misuse):
            pass
    raise Refused(Reason.MALFORMED, f"{text[:40]!r} is not a time such as 2026-11-20T00:00:00.000000Z")


def _plain(value: Any) -> bool:
    """Whether `json` writes just what RFC 8785 says, many times faster: text, small integers, and keys of ASCII, whose
    order is the same in every encoding.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(-MAX_INT <= value <= MAX_INT)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii() or not (type(item) is str or _plain(item)):
                return False
        return True
    return (kind is list or kind is tuple) and all(map(_plain, value))


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise ValueError(f"{value} is a float; write canonical.hexfloat of it")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not an integer")


_READER = json.JSONDecoder(parse_float=_no_number, parse_constant=_no_number)
_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _brief(error: BaseException) -> str:
    """Not the document itself: some decoding errors carry all of it."""
    return "not UTF-8" if isinstance(error, UnicodeError) else str(error)[:200]
