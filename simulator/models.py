"""Versions of the jobs of a run, read from where the real server stores them."""

from collections import OrderedDict
from collections.abc import Callable

from anabranch.link import EVERYONE_ELSE, Packing
from anabranch.terms import JobTerms
from anabranch.wire.manifest import Manifest
from server.blobs.local import BlobStore
from server.state.writer import Logged
from simulator.flat import Flat
from simulator.link import arrived, wire_bytes

KEPT = 64  # files in memory


class Models:
    """What the log says of versions, and their files. Jobs go by their ids."""

    def __init__(self, blobs: Callable[[], BlobStore]) -> None:
        self._blobs = blobs
        self._parameters: dict[tuple[str | None, int], str] = {}  # digests
        self._views: dict[
            tuple[str | None, int, str | None], tuple[str, int]
        ] = {}  # digests and bytes of what travels to a tier; None: of the parameters
        self._wire: dict[str, int] = {}  # digest of a packed view → bytes on the wire
        self._read: OrderedDict[str, Flat] = OrderedDict()

    def see(self, entry: Logged) -> None:
        detail = entry.detail
        if entry.type == "model.published":
            self._parameters[entry.job, detail["version"]] = detail["parameters_sha256"]
            self._views[entry.job, detail["version"], None] = detail["parameters_sha256"], detail["bytes"]
        elif entry.type == "model.encoded":
            key = entry.job, detail["version"], detail["tier"] or EVERYONE_ELSE
            self._views[key] = detail["view_sha256"], detail["bytes"]

    def parameters(self, job: str, version: int, manifest: Manifest) -> Flat:
        return self._file(self._parameters[job, version], manifest, None)

    def view(self, job: str, version: int, silo: str, terms: JobTerms, manifest: Manifest) -> Flat:
        """What a silo begins from."""
        digest = self.view_digest(job, version, silo, terms)
        return self._file(digest, manifest, terms.file.download(version, silo))

    def view_digest(self, job: str, version: int, silo: str, terms: JobTerms) -> str:
        """What the silo's leases and statements call a version by."""
        return self._sent(job, version, silo, terms)[0]

    def _sent(self, job: str, version: int, silo: str, terms: JobTerms) -> tuple[str, int]:
        packed = terms.file.download(version, silo) is not None
        return self._views[job, version, terms.file.tier(silo) if packed else None]

    def view_bytes(self, job: str, version: int, silo: str, terms: JobTerms) -> int:
        """That crossed the wire for one silo."""
        digest, size = self._sent(job, version, silo, terms)
        if terms.file.download(version, silo) is not None and digest not in self._wire:
            self._wire[digest] = wire_bytes(self._blobs().require(digest).read_bytes())
        return self._wire.get(digest, size)

    def _file(self, digest: str, manifest: Manifest, packing: Packing | None) -> Flat:
        if digest not in self._read:
            self._read[digest] = arrived(self._blobs().require(digest), manifest, packing)
            if len(self._read) > KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(digest)
        return self._read[digest]
