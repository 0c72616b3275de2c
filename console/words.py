"""Numbers as a person reads them."""

import math
import time


def size(count: float) -> str:
    """Bytes: `12.3 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def short(number: float) -> str:
    """`12.3k`; below 100 with one digit after the point."""
    for unit in ("", "k", "M", "G"):
        if number < 1000 or unit == "G":
            return f"{number:.1f}{unit}" if number < 100 else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def span(seconds: float) -> str:
    """The largest unit only: `3 min`; a dash for what a server says that is no length of time."""
    if not math.isfinite(seconds):
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(seconds: int) -> str:
    """`12 s ago` for a unix time, `never` for 0."""
    return f"{span(time.time() - seconds)} ago" if seconds else "never"


def rate(per_hour: float) -> str:
    """`34/h`; what is rarer than once an hour is said by the day."""
    if not per_hour:
        return "0/h"
    return (
        f"{per_hour:.0f}/h"
        if per_hour >= 10
        else f"{per_hour:.1f}/h"
        if per_hour >= 1
        else f"{per_hour * 24:.1f}/d"
    )


def score(name: str, value: float) -> str:
    return f"{value:.1%}" if 0 <= value <= 1 and "loss" not in name else f"{value:.4g}"


def printable(text: str) -> str:
    """Without what a terminal would obey: it comes from a job's code, by way of a silo and the server."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
