"""Keys that may be left unsaid."""

from typing import Any


def unsaid(value: Any) -> bool:
    """Such a key is not in the canonical form: terms that do without it have the digest they always had."""
    return value is None
