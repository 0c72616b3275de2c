"""An audit export on disk, read with every bound checked first.

    checkpoint   tile/<level>/…   tile/entries/…   keys/{log.vkey,ca.pem}   objects/<sha256>   sealed/<commit>.json

Files are hostile until a digest says otherwise: sizes are bounded before memory is taken, links are not followed, and
names are only ever made from numbers and digests.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Reason, Refused
from anabranch.tlog import tiles
from anabranch.tlog.entry import MAX_ENTRY
from anabranch.tlog.merkle import HASH_SIZE
from anabranch.tlog.note import MAX_NOTE

PIECE = (
    1 << 17
)  # bytes read at a time when a file is hashed; most are small, and memory for each is taken first
KEY_FILE = 64 * 1024  # bytes
SEALED_FILE = 64 * 1024  # bytes
BUNDLE = tiles.WIDTH * (2 + MAX_ENTRY)  # bytes

_OBJECT = re.compile(r"objects/[0-9a-f]{64}")
_SEALED = re.compile(r"sealed/[0-9a-f]{64}\.json")


@dataclass(frozen=True)
class Export:
    root: Path

    def checkpoint(self) -> str:
        """The signed note. Raises Refused."""
        try:
            return self.read("checkpoint", 4 * MAX_NOTE).decode()
        except UnicodeDecodeError as error:
            raise Refused(Reason.MALFORMED, "checkpoint is not UTF-8 text") from error

    def bundle(self, index: int, width: int) -> list[bytes]:
        """The `width` entries from 256 * index on. Raises Refused, also when there are more or fewer."""
        path = tiles.entries_path(index, width)
        entries = tiles.parse_bundle(self.read(path, BUNDLE))
        if len(entries) != width:
            raise Refused(Reason.MALFORMED, f"{path} holds {len(entries)} entries instead of {width}")
        return entries

    def tile(self, level: int, index: int, width: int) -> bytes:
        """`width` hashes of 32 bytes. Raises Refused."""
        return self.read(tiles.tile_path(level, index, width), HASH_SIZE * tiles.WIDTH)

    def read(self, name: str, limit: int) -> bytes:
        """A file of at most `limit` bytes. Raises Refused(NOT_FOUND, SIZE_LIMIT, MALFORMED)."""
        with os.fdopen(self._open(name), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Refused(Reason.SIZE_LIMIT, f"{name} is larger than the {limit} bytes it may have")
        return data

    def object(self, digest: str, limit: int) -> bytes | None:
        """A small object, None when the export does not hold it. Raises Refused if it is not what it says."""
        try:
            data = self.read(f"objects/{digest}", limit)
        except Refused as refusal:
            if refusal.code is Reason.NOT_FOUND:
                return None
            raise
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refused(Reason.DIGEST_MISMATCH, f"objects/{digest} holds other bytes than its name says")
        return data

    def object_path(self, digest: str) -> Path | None:
        """Where an object lies, None when the export does not hold it. Its bytes are not checked here."""
        path = self.root / "objects" / digest
        return path if path.is_file() and not path.is_symlink() else None

    def objects(self) -> Iterator[tuple[str, int]]:
        """(digest, bytes) of every object, sorted."""
        directory = self.root / "objects"
        if directory.is_dir():
            with os.scandir(directory) as files:
                found = [
                    (file.name, file.stat(follow_symlinks=False).st_size)
                    for file in files
                    if _OBJECT.fullmatch(f"objects/{file.name}")
                ]
            yield from sorted(found)

    def hash_object(self, digest: str, progress: Callable[[int], None]) -> bool:
        """Whether an object has the digest it is named by. Streams; `progress` gets the bytes of each piece."""
        found = hashlib.sha256()
        with os.fdopen(self._open(f"objects/{digest}"), "rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
                progress(len(piece))
        return found.hexdigest() == digest

    def sealed(self) -> Iterator[str]:
        """Commitments that the export opens, sorted."""
        directory = self.root / "sealed"
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if _SEALED.fullmatch(f"sealed/{path.name}"):
                yield path.name.removesuffix(".json")

    def strangers(self, size: int) -> list[str]:
        """Files that are no part of an export of `size` entries: nothing vouches for them, README included."""
        known = {"checkpoint", "keys/log.vkey", "keys/ca.pem"}
        known |= {tile.path for tile in tiles.tiles(size)}
        known |= {tiles.entries_path(index, width) for index, width in tiles.bundles(size)}
        found = []
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = Path(directory, name).relative_to(self.root).as_posix()
                if path not in known and not _OBJECT.fullmatch(path) and not _SEALED.fullmatch(path):
                    found.append(os.fsencode(path).decode("utf-8", "replace"))
        return sorted(found)

    def _open(self, name: str) -> int:
        try:
            descriptor = os.open(
                f"{self.root}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except FileNotFoundError as error:
            raise Refused(Reason.NOT_FOUND, f"{name} is missing from the export") from error
        except OSError as error:
            raise Refused(Reason.MALFORMED, f"{name} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Refused(Reason.MALFORMED, f"{name} is not a file")
        return descriptor


def open_export(path: Path) -> Export:
    """Raises Refused(NOT_FOUND) unless `path` looks like an export."""
    if not (path / "checkpoint").is_file():
        raise Refused(
            Reason.NOT_FOUND,
            f"{path} is no audit export: it has no file `checkpoint`; run anabranch-server export",
        )
    return Export(path)
