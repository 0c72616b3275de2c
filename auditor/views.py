"""Views: what silos were handed of a version, made again from its parameters."""

from pathlib import Path

from anabranch.terms import JobTerms
from anabranch.wire.manifest import Manifest
from anabranch.wire.packed import pack
from anabranch.wire.tensors import TensorFile
from auditor.history import Job


def difference(
    job: Job, number: int, terms: JobTerms, manifest: Manifest, parameters: Path, scratch: Path
) -> str:
    """What is wrong with the view of version `number`, whose canonical file is `parameters`; "" for nothing.

    Takes room for a view in the folder `scratch`. Raises Refused for a file that is not canonical.
    """
    packing = terms.file.download
    if packing is None:
        return ""
    made = scratch / f"view.{number}"
    try:
        with TensorFile(parameters, manifest) as file:
            digest, _ = pack(file, manifest, packing, made)
    finally:
        made.unlink(missing_ok=True)
    logged = job.views.get(number, set())
    if logged == {digest}:
        return ""
    return f"view: {', '.join(sorted(logged)) or 'none'} was handed out, recomputed {digest}"
