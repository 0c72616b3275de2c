"""What making version 0 tells whoever submits a job, besides the file: one form, written and read here."""

import re
from dataclasses import dataclass

from anabranch.errors import Reason, Refused
from anabranch.terms import DIGEST
from anabranch.wire.manifest import Manifest, parse_manifest


@dataclass(frozen=True)
class Made:
    manifest: Manifest
    base_sha256: str | None  # of what is frozen; None: nothing is

    def encode(self) -> bytes:
        """The manifest, then the digest if there is one, each on a line."""
        return (
            self.manifest.encode() + b"\n" + (f"{self.base_sha256}\n".encode() if self.base_sha256 else b"")
        )


def parse_made(data: bytes) -> Made:
    """Raises Refused(MALFORMED)."""
    first, _, rest = data.partition(b"\n")
    digest = rest.decode("ascii", "replace").removesuffix("\n")
    if digest and not re.fullmatch(DIGEST, digest):
        raise Refused(Reason.MALFORMED, f"after the manifest stands {digest[:80]!r}, which is no SHA-256")
    return Made(parse_manifest(first), digest or None)
