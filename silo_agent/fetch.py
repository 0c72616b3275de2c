"""Fetching what a job runs on: its code, by the digest that was approved, and its model versions, by proven digests."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, wording
from anabranch.link import EVERYONE_ELSE
from anabranch.terms import JobTerms
from anabranch.tlog.receipt import Receipt
from anabranch.wire import limits
from anabranch.wire.values import Bytes
from silo_agent.messages import View
from silo_agent.receipts import LogView, journal, require

WRITE_OUT = 8 * limits.MIB  # bytes after which the disk begins to work, while the next ones travel
Header = tuple[View, tuple[Receipt, ...]]


class Source(Protocol):
    """The calls a fetch makes; `silo_agent.client.Client` has them."""

    def archive(self, job: str) -> Iterator[bytes]: ...
    def model(self, job: str, digest: str, offset: int, seen: int) -> Iterator[Header | Bytes]: ...


def fetch_archive(source: Source, job: str, terms: JobTerms) -> bytes:
    """The job's packed code, at most limits.ARCHIVE bytes. Raises Refused(CODE_DIGEST_MISMATCH, SIZE_LIMIT)."""
    data = bytearray()
    for chunk in source.archive(job):
        data += chunk
        if len(data) > limits.ARCHIVE:
            raise Refused(Reason.SIZE_LIMIT, f"the code of job {job} is larger than {limits.ARCHIVE} bytes")
    if hashlib.sha256(data).hexdigest() != terms.archive_sha256:
        raise Refused(
            Reason.CODE_DIGEST_MISMATCH,
            f"the code the server sent for job {job} is not the code its terms name ({terms.archive_sha256}); "
            "it was not unpacked and will not run",
        )
    return bytes(data)


def fetch_model(
    source: Source,
    log: LogView,
    job: str,
    view: View,
    directory: Path,
    receipts: Path,
    keep: int,
    expand: Callable[[Path, Path], object] | None = None,
    tier: str = EVERYONE_ELSE,
) -> Path:
    """A model version on this disk: proven in the log, complete, and equal to its digest.

    `expand`: makes of what travelled (first path) the canonical file (second path) a job's code reads; None where
    that is what travels. `tier`: whose view it is, if it is one. Resumes a partial file. Raises Refused(DIGEST_MISMATCH)
    when the bytes are not those the log names, also after a second attempt from the start.
    """
    final = directory / f"{view.digest}.safetensors"
    if final.exists():
        _touch(final)
        return final
    durable.make_dir(directory)
    part = directory / f"{view.digest}.part"
    resumed = part.exists()

    def prove(header: Header) -> None:
        said = (
            {"view_sha256": view.digest, "tier": tier or None}
            if expand
            else {"parameters_sha256": view.digest}
        )
        _prove(log, job, view, header, receipts, "model.encoded" if expand else "model.published", said)

    try:
        _download(source, job, view, part, prove, log.seen())
    except _WrongBytes:
        if not resumed:
            raise
        # The earlier part had not all reached the disk, or the server changed its mind: once more, from the start.
        _download(source, job, view, part, prove, log.seen())
    if expand is None:
        durable.rename(part, final)
    else:
        whole = part.with_suffix(".expanded.part")  # cut short here, it is made again
        expand(part, whole)
        durable.rename(whole, final)
        durable.remove(part)
    _prune(directory, keep, final)
    return final


class _WrongBytes(Refused):
    def __init__(self, view: View) -> None:
        super().__init__(
            Reason.DIGEST_MISMATCH,
            f"version {view.version} arrived with other bytes than its digest {view.digest}; it was not used. The server's "
            "copy is probably damaged: tell its operator",
        )


def _download(
    source: Source, job: str, view: View, part: Path, prove: Callable[[Header], None], seen: int
) -> None:
    """Append to `part` until it is whole and synced. Killed inside: the next attempt resumes behind what is there."""
    digest = hashlib.sha256()
    with open(part, "a+b") as file:
        begun = offset = min(_hash_prefix(file.fileno(), digest), view.bytes)
        proven = False
        for message in source.model(job, view.digest, offset, seen):
            if isinstance(message, tuple):
                prove(message)
                proven = True
                continue
            offset += len(message)
            if not proven or offset > view.bytes:
                raise Refused(
                    Reason.MALFORMED,
                    f"version {view.version}: bytes without proof, or more than {view.bytes}",
                )
            digest.update(message)
            file.write(message)
            if offset - begun >= WRITE_OUT:
                durable.begin_sync(file.fileno(), begun, offset - begun)
                begun = offset
        file.flush()
        durable.sync(file.fileno())
    if digest.hexdigest() != view.digest or not proven:
        durable.remove(part)
        raise _WrongBytes(view)


def _prove(
    log: LogView,
    job: str,
    view: View,
    header: Header,
    receipts: Path,
    kind: str,
    said: Mapping[str, str | None],
) -> None:
    """A server cannot show different models to different silos: every one of them stands in the one log."""
    offered, proofs = header
    if offered != view:
        raise Refused(Reason.DIGEST_MISMATCH, f"leased {view}, but the server sends {offered}")
    for receipt in proofs:
        entry = log.accept(receipt)
        if entry.type == kind:
            require(entry, kind, job=job, version=view.version, **said)
            journal(receipts, receipt, sync=False)
            return
    raise Refused(Reason.DIGEST_MISMATCH, f"version {view.version} came without its {kind} entry")


def _hash_prefix(fd: int, digest: "hashlib._Hash") -> int:
    offset = 0
    while chunk := os.pread(fd, limits.CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return offset


def _touch(path: Path) -> None:
    """The newest use orders what is pruned; losing it costs nothing."""
    try:
        os.utime(path)
    except OSError as error:
        raise Corrupt(
            f"{path} cannot be touched: {wording(error)}; the agent's directory must be its own"
        ) from error


def _prune(directory: Path, keep: int, current: Path) -> None:
    """Keep the `keep` models used last, besides `current`; partial files of versions nobody leases any more go too."""
    others = [p for p in directory.iterdir() if p != current]
    models = sorted(
        (p for p in others if p.suffix == ".safetensors"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for path in [*models[keep:], *(p for p in others if p.suffix == ".part")]:
        path.unlink(missing_ok=True)
