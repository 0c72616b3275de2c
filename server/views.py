"""Views: what travels of a version, where its job has another form for that than it is stored in.

A view follows from the version's parameters and the terms alone, so a replay makes the same bytes again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.terms import JobTerms
from anabranch.tlog.entry import Actor, Target
from anabranch.wire import canonical
from anabranch.wire.packed import pack
from anabranch.wire.tensors import Manifest, TensorFile
from server.blobs.local import BlobStore
from server.state.writer import Transaction


@dataclass(frozen=True)
class Encoded:
    digest: str
    bytes: int


def encode(blobs: BlobStore, parameters: Path, terms: JobTerms, manifest: Manifest) -> Encoded | None:
    """The view of a version, on stable storage; None where its parameters travel as they are."""
    packing = terms.file.download
    if packing is None:
        return None
    path = blobs.spool()
    with TensorFile(parameters, manifest) as file:
        view = Encoded(*pack(file, manifest, packing, path))
    blobs.adopt(path, view.digest)
    return view


def log(
    tx: Transaction, actor: Actor, job: str, number: int, terms: JobTerms, view: Encoded | None
) -> dict[str, Any]:
    """Record the view of a version that has just been published. Returns the columns of its row."""
    packing = terms.file.download
    if view is None or packing is None:
        return {}
    entry = tx.log(
        "model.encoded",
        actor=actor,
        target=Target(kind="model", id=f"{job}/{number}", sha256=view.digest),
        job=job,
        detail={
            "version": number,
            "density": canonical.hexfloat(packing.density),
            "encoding": packing.values,
            "view_sha256": view.digest,
            "bytes": view.bytes,
        },
    )
    return {"view": view.digest, "view_entry": entry, "bytes": view.bytes}
