"""What updates of a job left out, on this silo's disk until a later one takes it along: `[link] upload_feedback`.

It follows from the silo's records as an update does, and nobody but the agent reads it. It is of updates the server
accepted: what one update leaves out lies beside it in the outbox, and takes the job's place for it when the receipt has
come. A refused one is forgotten together with what it left out.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Corrupt, Refused
from anabranch.link import Packing
from anabranch.rules.feedback import Candidate, layout, leave_out
from anabranch.wire.manifest import Manifest
from anabranch.wire.packed import PackedFile, pack
from anabranch.wire.tensors import TensorFile, TensorWriter

REMAINDER = "remainder.safetensors"  # in a job's folder, and in an update's of the outbox


@dataclass(frozen=True)
class Feedback:
    folder: Path  # of the job
    decay: float

    def pack(self, delta: Path, manifest: Manifest, packing: Packing, target: Path) -> tuple[str, int]:
        """As `wire.packed.pack`, with what was left out before; what is left out now lies beside `target`, synced.

        Raises Corrupt when the job's remainder cannot be read.
        """
        with TensorFile(delta, manifest) as file, self._remainder(manifest) as remainder:
            candidate = Candidate(file, remainder, self.decay, manifest)
            found = pack(candidate, manifest, packing, target)
            beside = target.with_name(REMAINDER)
            os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            with (
                PackedFile(target, manifest, packing.values) as sent,
                TensorWriter(beside, layout(manifest)) as writer,
            ):
                leave_out(candidate, sent, manifest, writer)
                writer.close()
        return found

    @contextmanager
    def _remainder(self, manifest: Manifest) -> Iterator[TensorFile | None]:
        path = self.folder / REMAINDER
        try:
            file = TensorFile(path, layout(manifest))
        except FileNotFoundError:
            yield None
            return
        except Refused as error:
            raise Corrupt(
                f"{path} is damaged: {error}; restore it, or remove it and what updates left out is lost"
            ) from error
        with file:
            yield file
