"""`anabranch job export`: a model version as a safetensors file that loads in plain torch, with a model card.

The file appears under its name only after its bytes have the digest that the audit log states; an interrupted export
leaves nothing behind.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_terms
from anabranch.v1 import admin_pb2
from console import adapter, output
from console.client import Admin, Logged, logged

EXPORT_SECONDS = 3600
FILE_ALONE = adapter.Wanted()


@dataclass(frozen=True)
class Exported:
    path: Path
    card: Path
    version: int
    sha256: str
    bytes: int
    entry: Logged
    beside: adapter.Written

    def document(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "card": str(self.card),
            "version": self.version,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "log_index": self.entry.index,
            "adapter": str(self.beside.adapter) if self.beside.adapter else None,
            "merged": str(self.beside.merged) if self.beside.merged else None,
        }


def export(
    admin: Admin, job: str, selector: str, path: Path, wanted: adapter.Wanted = FILE_ALONE
) -> Exported:
    """Write `job`'s version (`head`, `best`, `ema` or a number) to `path` and its card beside it, and for an adapted
    model the folders of `adapter.write`.

    Raises Refused(NOT_FOUND) from the server, Refused(DIGEST_MISMATCH) when what arrived is not what is logged.
    """
    if selector not in ("head", "best", "ema") and not selector.isdecimal():
        raise Refused(
            Reason.MALFORMED, f"--version {selector}: write head, best, ema or the number of a version"
        )
    card = path.with_suffix(".md")
    if card == path:
        raise Refused(
            Reason.MALFORMED, f"-o {path}: that is the model card's name; write for example model.safetensors"
        )
    request = admin_pb2.ExportModelRequest(job=job, version=selector)
    with output.writing(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as spool:
        header, found = receive(admin.stub.ExportModel(request, timeout=EXPORT_SECONDS), spool)
        os.fsync(spool.fileno())
        entry = logged(admin, header.receipt)
        if (found, entry.detail.get("sha256")) != (header.digest, header.digest):
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"version {header.version} arrived with digest {found}, the server announced {header.digest} and its"
                f" log entry {entry.index} says {entry.detail.get('sha256')}; nothing was written",
            )
        terms = parse_terms(header.terms)
        wanted.check(terms)
        path.unlink(missing_ok=True)
        os.link(spool.name, path)
        path.chmod(0o644)
        card.write_bytes(header.card)
        beside = adapter.write(path, terms, wanted)
    return Exported(path, card, header.version, found, path.stat().st_size, entry, beside)


def receive(replies: Any, spool: Any) -> tuple[admin_pb2.ExportModelHeader, str]:
    """The header, and the digest of what was written to `spool`. Raises Refused(MALFORMED)."""
    header: admin_pb2.ExportModelHeader | None = None
    digest, taken = hashlib.sha256(), 0
    for reply in replies:
        if reply.WhichOneof("body") == "header":
            header = reply.header
            continue
        taken += len(reply.chunk)
        if header is None or taken > header.bytes:
            raise Refused(Reason.MALFORMED, "the server sent more of the model than it announced")
        digest.update(reply.chunk)
        spool.write(reply.chunk)
    if header is None or taken != header.bytes:
        raise Refused(Reason.MALFORMED, f"the server sent {taken} bytes of a model and stopped")
    spool.flush()
    return header, digest.hexdigest()
