"""What a task names, on this disk: fetched under its digest, and removed when it was used."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.link import Packing
from anabranch.terms import JobTerms, parse_terms
from anabranch.wire import limits
from anabranch.wire.packed import expand, most_bytes
from anabranch.wire.tensors import Manifest, parse_manifest
from anabranch.wire.values import Bytes
from reviver.client import Task
from silo_agent.training import archive


class Source(Protocol):
    """The call a fetch makes; `reviver.client.Client` has it."""

    def file(self, task: str, digest: str, offset: int) -> Iterator[Bytes]: ...


@dataclass(frozen=True)
class JobFiles:
    """Of one job, in `directory`: `archive/`, its code, and `models/`."""

    source: Source
    directory: Path

    def job(self, task: Task) -> tuple[JobTerms, Manifest]:
        """Terms and manifest; the code is unpacked. Raises Refused as `fetch`, and for what does not parse."""
        durable.make_dir(self.directory / "models")
        terms = parse_terms(self.fetch(task.id, task.terms, limits.TERMS).read_bytes())
        manifest = parse_manifest(self.fetch(task.id, terms.manifest_sha256, limits.MANIFEST).read_bytes())
        if not (self.directory / "archive").exists():
            code = self.fetch(task.id, terms.archive_sha256, limits.ARCHIVE)
            archive.unpack(code.read_bytes(), self.directory / "archive")
        return terms, manifest

    def fetch(self, task: str, digest: str, most: int) -> Path:
        """A file of at most `most` bytes, equal to its digest. A partial one is resumed.

        Raises Refused(DIGEST_MISMATCH, SIZE_LIMIT), and what the server refuses.
        """
        final = self.directory / "models" / digest
        if final.exists():
            return final
        part = final.with_suffix(".part")
        try:
            self._download(task, digest, most, part)
        except Refused:
            durable.remove(part)
            raise
        durable.rename(part, final)
        return final

    def tensors(self, task: str, digest: str, manifest: Manifest, packing: Packing | None) -> Path:
        """A canonical file of `manifest`, made of a packed one where that is what travels. Raises Refused as `fetch`."""
        if packing is None:
            return self.fetch(task, digest, manifest.file_bytes)
        packed = self.fetch(task, digest, most_bytes(manifest, packing))
        whole = packed.with_suffix(".whole")
        expand(packed, manifest, packing.values, whole)  # again, if this was cut short
        return whole

    def _download(self, task: str, digest: str, most: int, part: Path) -> None:
        found = hashlib.sha256()
        with open(part, "a+b") as file:
            file.seek(0)
            while chunk := file.read(limits.CHUNK):
                found.update(chunk)
            size = file.tell()
            for arrived in self.source.file(task, digest, size):
                size += len(arrived)
                if size > most:
                    raise Refused(Reason.SIZE_LIMIT, f"{digest}: more than {most} bytes arrived")
                found.update(arrived)
                file.write(arrived)
            file.flush()
            durable.sync(file.fileno())
        if found.hexdigest() != digest:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"the server sent other bytes than {digest}; they were not used. Tell its operator",
            )

    def keep(self, digests: Collection[str]) -> None:
        """Remove every other file."""
        for path in (self.directory / "models").iterdir():
            if path.stem not in digests:
                path.unlink()
