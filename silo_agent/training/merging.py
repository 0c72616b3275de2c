"""An exported version put into the job's whole model: `python -m silo_agent.training.merging WHAT CODE TERMS MODEL OUT
[BASE]`, in a process of its own that runs the job's code.

WHAT: `adapter` writes the folder that peft loads, `merged` a checkpoint in which LoRA's pairs are added to the weights
they stand beside.
"""

import sys
from pathlib import Path

import torch

from anabranch.terms import JobTerms, parse_terms
from silo_agent.training import tensors
from silo_agent.training.adapters import base_digest, check_base
from silo_agent.training.building import build_model
from silo_agent.training.runner import check_manifest
from silo_agent.training.task import Garbage, load_task


def whole(code: Path, terms: JobTerms, version: Path, base: Path | None) -> torch.nn.Module:
    """The job's model with the values of `version`. Raises what the job's code raises, and Garbage for another base."""
    file = terms.file
    model = build_model(load_task(code, file.job.task, file.job.params), file, base)
    manifest = tensors.manifest_of(model, file.training.buffers)
    check_manifest(manifest, terms.manifest_sha256)
    check_base(base_digest(model, file.training.buffers), terms.base_sha256, base)
    tensors.load(model, version, manifest)
    return model.eval()


def merged(model: torch.nn.Module) -> torch.nn.Module:
    """Without peft's wrapping, which it no longer needs."""
    unload = getattr(model, "merge_and_unload", None)
    plain: torch.nn.Module = model if unload is None else unload(safe_merge=True)
    return plain


def save(model: torch.nn.Module, folder: Path) -> None:
    """As the model saves itself, or as one safetensors file."""
    itself = getattr(model, "save_pretrained", None)
    if itself is not None:
        itself(folder)
        return
    from safetensors.torch import save_model

    folder.mkdir(exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))


def main(arguments: list[str]) -> None:
    what, code, terms, version, out, *base = arguments
    torch.set_num_threads(1)
    approved = parse_terms(Path(terms).read_bytes())
    try:
        model = whole(Path(code), approved, Path(version), Path(base[0]) if base else None)
    except Garbage as error:
        sys.exit(str(error))
    save(merged(model) if what == "merged" else model, Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
