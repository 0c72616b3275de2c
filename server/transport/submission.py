"""A job on its way in: one header, then the archive's bytes, then the initial model's."""

from collections.abc import Callable
from pathlib import Path

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import Actor
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import admin_pb2 as pb
from anabranch.wire import limits
from anabranch.wire.manifest import parse_manifest
from anabranch.wire.values import Bytes

Submit = Callable[[Actor, bytes, bytes, bytes, Path], tuple[str, Receipt]]


class Submission:
    """Takes what the header announced and no byte more. Synchronous: called in threads, one at a time."""

    def __init__(self, header: pb.SubmitJobHeader, initial: Path) -> None:
        self._header = header
        self._archive = bytearray()
        self._initial = initial
        self._file = open(initial, "xb", buffering=0)  # noqa: SIM115 - `discard` closes it
        self.missing = header.archive_bytes + header.initial_bytes

    def take(self, chunk: Bytes) -> None:
        """Raises Refused(SIZE_LIMIT)."""
        if len(chunk) > self.missing:
            raise Refused(
                Reason.SIZE_LIMIT, "more bytes than the header announced arrived; submit the job again"
            )
        self.missing -= len(chunk)
        split = self._header.archive_bytes - len(self._archive)
        self._archive += chunk[:split]
        rest = memoryview(chunk)[split:]
        while rest:
            rest = rest[self._file.write(rest) :]

    def hand_over(self, submit: Submit, owner: Actor) -> tuple[str, Receipt]:
        """All bytes are here. Raises Refused when they are not, or as `submit` does."""
        if self.missing:
            raise Refused(
                Reason.SIZE_LIMIT, f"{self.missing} of the announced bytes did not arrive; submit again"
            )
        self._file.close()
        header = self._header
        return submit(owner, header.terms, header.manifest, bytes(self._archive), self._initial)

    def discard(self) -> None:
        """Forget the file, unless it has become a blob and so has another name."""
        self._file.close()
        self._initial.unlink(missing_ok=True)


def check_sizes(header: pb.SubmitJobHeader) -> None:
    """Before a byte is taken. Raises Refused: SIZE_LIMIT, or as `parse_manifest`."""
    for what, size, most in (
        ("job terms", len(header.terms), limits.TERMS),
        ("manifest", len(header.manifest), limits.MANIFEST),
        ("archive", header.archive_bytes, limits.ARCHIVE),
        ("initial model", header.initial_bytes, limits.TENSOR_FILE),
    ):
        if not 0 < size <= most:
            raise Refused(Reason.SIZE_LIMIT, f"{what}: {size} bytes; expected 1 to {most}")
    expected = parse_manifest(header.manifest).file_bytes
    if header.initial_bytes != expected:
        raise Refused(
            Reason.SIZE_LIMIT,
            f"initial model: {header.initial_bytes} bytes; by its manifest it has {expected}",
        )
