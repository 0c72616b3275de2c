"""Which content an entry names: digests of blobs that must be kept while the log does not say they were pruned."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from anabranch.tlog.entry import Sig

_DIGESTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job.submitted": ("terms_sha256", "archive_sha256", "manifest_sha256"),
        "model.published": ("parameters_sha256", "optimizer_sha256", "ema_sha256"),
        "update.received": ("delta_sha256",),
    }
)


def named(type: str, detail: Mapping[str, Any], sigs: Sequence[Sig]) -> set[str]:
    """What the detail names, and what was signed. The initial model is named by version 0, which is it."""
    content = {detail[field] for field in _DIGESTS.get(type, ()) if detail.get(field) is not None}
    return content | {sig.payload_sha256 for sig in sigs}
