"""Where what was recomputed differs from what the log or an export holds, in words."""

from pathlib import Path

import numpy as np

from anabranch.errors import Refused
from anabranch.link import Packing
from anabranch.rules import step
from anabranch.terms import JobTerms
from anabranch.wire.manifest import Manifest
from anabranch.wire.packed import check_packed, pack
from anabranch.wire.tensors import TensorFile
from auditor.history import Job


def view_difference(
    job: Job, number: int, terms: JobTerms, manifest: Manifest, parameters: Path, scratch: Path
) -> str:
    """What is wrong with the views of version `number`, whose canonical file is `parameters`; "" for nothing.

    Takes room for a view in the folder `scratch`. Raises Refused for a file that is not canonical.
    """
    wanted, logged = terms.file.views(number), job.views.get(number, {})
    made = {packing: _digest(packing, manifest, parameters, scratch) for packing in set(wanted.values())}
    for tier in {**wanted, **logged}:
        ours, theirs = made[wanted[tier]] if tier in wanted else "none", logged.get(tier, "none")
        if ours != theirs:
            whose = f"view of tier {tier}" if tier else "view"
            return f"{whose}: {theirs} was handed out, recomputed {ours}"
    return ""


def _digest(packing: Packing, manifest: Manifest, parameters: Path, scratch: Path) -> str:
    made = scratch / "view"
    try:
        with TensorFile(parameters, manifest) as file:
            return pack(file, manifest, packing, made)[0]
    finally:
        made.unlink(missing_ok=True)


def update_difference(path: Path, manifest: Manifest, packing: Packing) -> str:
    """Why the file of an update is none that its silo could send for its base; "" for nothing."""
    try:
        check_packed(path, manifest, packing)
    except Refused as error:
        return str(error)
    return ""


def first_difference(ours: Path, theirs: Path, manifest: Manifest) -> str:
    """`; first in tensor …` where two canonical files of `manifest` differ first. Reads both piece by piece."""
    with TensorFile(ours, manifest) as one, TensorFile(theirs, manifest) as other:
        for spec in manifest.specs:
            for start in range(0, spec.elements, step.CHUNK):
                stop = min(start + step.CHUNK, spec.elements)
                a, b = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
                one.read(spec.name, start, stop, a)
                other.read(spec.name, start, stop, b)
                different = np.flatnonzero(a.view(np.uint32) != b.view(np.uint32))
                if different.size:
                    at = int(different[0])
                    return (
                        f"; first in tensor {spec.name}, element {start + at}: {b[at]!r} instead of {a[at]!r}"
                    )
    return ""
