"""Writing the audit export: a directory that anybody can verify without this server.

    checkpoint  tile/…  keys/  objects/<sha256>  README.txt        (C2SP tlog-tiles; objects are content-addressed)

Evaluation statements and sealed facts are left out unless asked for: they are private to their silo and the job's owner.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from anabranch.errors import Conflict, Reason, Refused
from anabranch.tlog import tiles
from anabranch.tlog.entry import Entry, parse_entry
from anabranch.wire import canonical
from server.audit.log import newest_checkpoint, node_reader
from server.audit.objects import named
from server.blobs.local import BlobStore
from server.state import records
from server.state.database import Reader
from server.state.tables import entries, sealed

README = """This directory is an export of an Anabranch audit log. It needs no server to be checked:

    anabranch-audit verify  EXPORT --vkey LOG_VKEY
    anabranch-audit replay  EXPORT --vkey LOG_VKEY

LOG_VKEY is the log's verifier key, which every silo pinned at enrolment (identity/federation.json); keys/log.vkey is a
copy for convenience and proves nothing by itself. Formats: C2SP tlog-checkpoint and tlog-tiles, RFC 6962, RFC 8785.
objects/ holds what entries name by SHA-256: job terms, code, model versions, deltas and signed statements, but for
evaluations, which are private, and for what entries of type retention.pruned say is not kept any more.
"""


@dataclass(frozen=True)
class Exported:
    size: int  # entries
    objects: int
    pruned: int  # objects the log says are no longer kept
    missing: int  # objects that should be there and are not


def export(
    reader: Reader,
    blobs: BlobStore,
    vkey: str,
    ca_pem: bytes,
    out: Path,
    with_sealed: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write to a new directory; one consistent snapshot, whatever the server does meanwhile. Raises Refused."""
    if out.exists() and any(out.iterdir()):
        raise Refused(Reason.MALFORMED, f"{out} is not empty; name a new directory for the export")
    with reader.connect() as connection:
        # First: a database that cannot be read leaves nothing behind.
        size, note = newest_checkpoint(connection)
        for name in ("keys", "objects"):
            (out / name).mkdir(parents=True, exist_ok=True)
        _write(out / "checkpoint", note.encode())
        _write(out / "keys/log.vkey", vkey.encode() + b"\n")
        _write(out / "keys/ca.pem", ca_pem)
        _write(out / "README.txt", README.encode())
        _write_tiles(connection, out, size)
        found, pruned, lost = set[str](), set[str](), set[str]()
        for index, (entry, signed) in enumerate(_entries(connection, size)):
            if signed is not None and (with_sealed or entry.type != "model.evaluated"):
                found.add(_write_object(out, signed))
            for digest in named(entry.type, _detail(entry)):
                if not records.kept(connection, digest):
                    pruned.add(digest)
                else:
                    (found if _copy(blobs, digest, out / "objects" / digest) else lost).add(digest)
            progress(index + 1, size)
        if with_sealed:
            _write_sealed(connection, out)
    _require_unpruned(reader, lost)
    return Exported(size, len(found), len(pruned), len(lost))


def _require_unpruned(reader: Reader, lost: set[str]) -> None:
    """What was pruned after the snapshot was taken is missing in it without a reason. Raises Conflict."""
    with reader.connect() as connection:
        if not all(records.kept(connection, digest) for digest in lost):
            raise Conflict(
                "retention removed content while it was exported; export again, to another directory"
            )


def _entries(connection: Connection, size: int) -> Iterator[tuple[Entry, bytes | None]]:
    """Each entry with the payload of its signature."""
    query = select(entries).where(entries.c.index < size).order_by(entries.c.index)
    for row in connection.execute(query):
        yield parse_entry(bytes(row.data)), row.signed


def _detail(entry: Entry) -> dict[str, Any]:
    return entry.detail if isinstance(entry.detail, dict) else entry.detail.model_dump(exclude_none=True)


def _write_tiles(connection: Connection, out: Path, size: int) -> None:
    node = node_reader(connection)
    for tile in tiles.tiles(size):
        _write(out / tile.path, tile.data(node))
    for index, width in tiles.bundles(size):
        first = index * tiles.WIDTH
        query = (
            select(entries.c.data)
            .where(entries.c.index.between(first, first + width - 1))
            .order_by(entries.c.index)
        )
        data = [bytes(one) for one in connection.execute(query).scalars()]
        _write(out / tiles.entries_path(index, width), tiles.encode_bundle(data))


def _write_sealed(connection: Connection, out: Path) -> None:
    for row in connection.execute(select(sealed)):
        opened = {"salt": row.salt, "fields": json.loads(row.fields), "silo": row.silo}
        _write(out / "sealed" / f"{row.commit}.json", json.dumps(opened, sort_keys=True).encode())


def _copy(blobs: BlobStore, digest: str, target: Path) -> bool:
    source = blobs.path(digest)
    if target.exists():
        return True
    if not source.exists():
        return False
    shutil.copyfile(source, target)  # not a link: whoever edits an export must not edit the server's blobs
    return True


def _write_object(out: Path, data: bytes) -> str:
    digest = canonical.sha256(data)
    _write(out / "objects" / digest, data)
    return digest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
