"""The blobs one aggregation reads, proven to be what their names promise while they are read."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from anabranch.link import Packing
from anabranch.wire.packed import PackedFile, open_tensors
from anabranch.wire.tensors import Manifest, TensorFile
from server.blobs.local import BlobStore


class Inputs:
    """Open files inside a `with` block; a thread beside the arithmetic hashes each of them once more.

    Leaving the block raises Corrupt when one was not intact, whatever else went wrong: nothing computed from it may be
    stored, and the damage explains the rest.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._files = ExitStack()
        self._proofs: list[Future[Path]] = []
        self._hashing = ThreadPoolExecutor(1, "proof")

    def open(
        self, digest: str, manifest: Manifest, packing: Packing | None = None
    ) -> TensorFile | PackedFile:
        """Raises Corrupt when it is missing, Refused when it is no file of `manifest`, packed so if it is packed."""
        path = self._blobs.require(digest)
        self._proofs.append(self._hashing.submit(self._blobs.intact, digest))
        file = open_tensors(path, manifest, packing)
        self._files.callback(file.close)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._hashing, self._files:
            for proof in self._proofs:
                proof.result()
