"""Views: what travels of a version, where its job has another form for that than it is stored in.

A view follows from the version's parameters, its number and the terms alone, so a replay makes the same bytes again. Each
tier of silos has its own; tiers that get the same share the blob.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert

from anabranch.link import EVERYONE_ELSE, Packing
from anabranch.terms import JobTerms
from anabranch.tlog.entry import Actor, Target
from anabranch.wire import canonical
from anabranch.wire.packed import pack
from anabranch.wire.tensors import Manifest, TensorFile
from server.blobs.local import BlobStore
from server.state.tables import views
from server.state.writer import Transaction


@dataclass(frozen=True)
class Encoded:
    tier: str
    packing: Packing
    digest: str
    bytes: int


def encode(
    blobs: BlobStore, parameters: Path, terms: JobTerms, manifest: Manifest, number: int
) -> tuple[Encoded, ...]:
    """The views of version `number`, on stable storage: of each tier that does not get the parameters as they are."""
    wanted = terms.file.views(number)
    made = {packing: _made(blobs, parameters, manifest, packing) for packing in set(wanted.values())}
    return tuple(Encoded(tier, packing, *made[packing]) for tier, packing in wanted.items())


def _made(blobs: BlobStore, parameters: Path, manifest: Manifest, packing: Packing) -> tuple[str, int]:
    path = blobs.spool()
    with TensorFile(parameters, manifest) as file:
        digest, size = pack(file, manifest, packing, path)
    blobs.adopt(path, digest)
    return digest, size


def record(tx: Transaction, actor: Actor, job: str, number: int, encoded: Sequence[Encoded]) -> None:
    """The views of a version that has just been published."""
    for view in encoded:
        detail = {
            "version": number,
            "tier": None if view.tier == EVERYONE_ELSE else view.tier,
            "density": canonical.hexfloat(view.packing.density),
            "encoding": view.packing.values,
            "view_sha256": view.digest,
            "bytes": view.bytes,
        }
        target = Target(kind="model", id=f"{job}/{number}", sha256=view.digest)
        entry = tx.log("model.encoded", actor=actor, target=target, job=job, detail=detail)
        row = {
            "job": job,
            "version": number,
            "tier": view.tier,
            "digest": view.digest,
            "bytes": view.bytes,
            "entry": entry,
        }
        tx.connection.execute(insert(views).values(row))
