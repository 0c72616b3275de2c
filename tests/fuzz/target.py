"""The contract of a parser, executable.

For any bytes at all it returns a value, which encodes to the same bytes where the format is canonical, or raises the
error its docstring names. No other exception, no message that could not travel or that speaks to a terminal in its own
tongue. That memory and time are bounded, the callers see to: a test traces memory, libFuzzer has limits of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.errors import MESSAGE, Refused
from tests.fuzz.shapes import Shape, octets


class ContractBroken(AssertionError):
    """A parser did something its contract does not allow."""


@dataclass(frozen=True)
class Target:
    """`parse` gives what the value encodes to, or None where a format has many spellings. `seeds`: valid inputs, made
    by the real encoders. `shape`: how an input of this kind is changed so that it stays one of its kind.
    """

    name: str
    parse: Callable[[bytes], bytes | None]
    seeds: Callable[[], Sequence[bytes]]
    shape: Shape = octets
    errors: tuple[type[Exception], ...] = (Refused,)


def check(target: Target, data: bytes) -> bool:
    """Whether `data` was accepted. Raises ContractBroken, or whatever escaped from the parser."""
    try:
        again = target.parse(data)
    except target.errors as error:
        _presentable(error)
        return False
    if again is not None and again != data:
        raise ContractBroken(f"{target.name} accepts a second spelling of {again[:200]!r}")
    return True


def _presentable(error: Exception) -> None:
    """It ends up on a terminal, in a log and in an HTTP/2 header."""
    text = str(error)
    text.encode()  # a lone surrogate cannot be sent
    if len(text) > MESSAGE:
        raise ContractBroken(f"an error of {len(text)} characters: {text[:200]!r}") from error
    odd = {c for c in text if c != "\n" and not c.isprintable()}
    if odd:
        raise ContractBroken(f"an error with {odd} in it: {text[:200]!r}") from error
