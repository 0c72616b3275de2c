"""A folder of this process for parsers that read files; in memory where the machine has such a place."""

import tempfile
from functools import cache
from pathlib import Path

MEMORY = Path("/dev/shm")
place: Path | None = (
    MEMORY if MEMORY.is_dir() else None
)  # whoever kills this process names one, and removes it
_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def folder(name: str) -> Path:
    """One folder for each name, removed when the process ends."""
    kept = tempfile.TemporaryDirectory(prefix="anabranch-fuzz-", dir=place)
    _kept.append(kept)
    made = Path(kept.name) / name
    made.mkdir()
    return made


def file(name: str, data: bytes) -> Path:
    """`data` in a file of that name."""
    path = folder("files") / name
    path.write_bytes(data)
    return path
