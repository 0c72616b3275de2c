"""Which content an entry names: digests of blobs that must be kept while the log does not say they were pruned."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_DIGESTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job.submitted": ("terms_sha256", "archive_sha256", "manifest_sha256"),
        "model.published": ("parameters_sha256", "optimizer_sha256", "ema_sha256"),
        "model.encoded": ("view_sha256",),
        "update.received": ("delta_sha256",),
        "revival.performed": ("delta_sha256",),
    }
)


def named(type: str, detail: Mapping[str, Any]) -> set[str]:
    """What the detail names. The initial model is named by version 0, which is it."""
    return {detail[field] for field in _DIGESTS.get(type, ()) if detail.get(field) is not None}
