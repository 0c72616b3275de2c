"""What an export writes beside the file of an adapted model: a folder that peft loads, and a merged checkpoint.

A pair of LoRA is in the file, so the first is a matter of names. What is not in the file, the base and a frozen A, is
made again by the job's code in a process of its own: the console never imports torch.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anabranch import durable
from anabranch.errors import Reason, Refused
from anabranch.terms import Adapter, JobTerms
from anabranch.wire.canonical import sha256
from anabranch.wire.manifest import Manifest
from anabranch.wire.tensors import TensorFile, TensorWriter, read_manifest
from silo_agent.training.archive import pack
from silo_agent.training.isolation import SAME_HASHES

PIECE = 1 << 18  # elements: 1 MiB
REBUILD_SECONDS = 3600  # a large base model is read and written
TRACEBACK_CHARACTERS = 4000


@dataclass(frozen=True)
class Wanted:
    """What a person gave on the command line."""

    code: Path | None = None  # the folder that was submitted
    base: Path | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        if self.merge and self.code is None:
            raise Refused(
                Reason.MALFORMED, "--merge makes the job's model again: add --code FOLDER, what was submitted"
            )

    def check(self, terms: JobTerms) -> None:
        """Raises Refused when these are not what the job is made of, before anything is written."""
        if self.code is None:
            return
        if (found := sha256(pack(self.code))) != terms.archive_sha256:
            raise Refused(
                Reason.CODE_DIGEST_MISMATCH,
                f"--code {self.code} packs to {found}, the job's archive is {terms.archive_sha256}: give the very folder "
                "that was submitted",
            )
        name = terms.file.job.base
        if name is not None and (self.base is None or not self.base.exists()):
            raise Refused(
                Reason.NOT_FOUND, f"the job adapts the base model {name!r}: add --base PATH, its folder here"
            )


@dataclass(frozen=True)
class Written:
    adapter: Path | None = None
    merged: Path | None = None


def write(model: Path, terms: JobTerms, wanted: Wanted) -> Written:
    """The folders beside `model` that its job allows and a person asked for. Raises Refused(TASK_FAILED)."""
    lora = terms.file.adapter if terms.file.adapter and terms.file.adapter.kind == "lora" else None
    beside, merged = model.with_name(f"{model.stem}-adapter"), model.with_name(f"{model.stem}-merged")
    if lora is not None and not lora.freeze_a:
        _rename(model, lora, wanted.base, beside)
    elif lora is not None and wanted.code is not None:
        _rebuild("adapter", model, terms, wanted, beside)
    if wanted.merge:
        _rebuild("merged", model, terms, wanted, merged)
    there = lora is not None and (not lora.freeze_a or wanted.code is not None)
    return Written(beside if there else None, merged if wanted.merge else None)


def _rename(model: Path, adapter: Adapter, base: Path | None, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    travelling = read_manifest(model)
    names = {_of_peft(spec.name): spec for spec in travelling.specs}
    renamed = Manifest(tuple(type(spec)(name, spec.shape, spec.role) for name, spec in names.items()))
    beside = folder / ".adapter_model.tmp"
    beside.unlink(missing_ok=True)
    buffer = np.empty(PIECE, np.dtype("<f4"))
    with TensorFile(model, travelling) as file, TensorWriter(beside, renamed) as writer:
        for spec in renamed.specs:
            for start in range(0, spec.elements, PIECE):
                stop = min(start + PIECE, spec.elements)
                file.read(names[spec.name].name, start, stop, buffer[: stop - start])
                writer.write(buffer[: stop - start])
        writer.close()
    os.replace(beside, folder / "adapter_model.safetensors")
    config = json.dumps(_config(adapter, travelling, base), indent=2) + "\n"
    durable.write(folder / "adapter_config.json", config.encode(), 0o644)


def _of_peft(name: str) -> str:
    """Its files leave out what the adapter is called in memory."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")


def _config(adapter: Adapter, travelling: Manifest, base: Path | None) -> dict[str, Any]:
    """With targets by their full names, as the tensors have them: peft has nothing left to choose."""
    found = {spec.name.removeprefix("base_model.model.").partition(".lora_") for spec in travelling.specs}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None if base is None else str(base),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted({module for module, pair, _ in found if pair}),
        "modules_to_save": list(adapter.heads) or None,
        "bias": "none",
        "inference_mode": True,
    }


def _rebuild(
    what: Literal["adapter", "merged"], model: Path, terms: JobTerms, wanted: Wanted, folder: Path
) -> None:
    assert wanted.code is not None, "or there would be nothing to run"
    if folder.exists():
        raise Refused(Reason.MALFORMED, f"{folder} is there already: remove it, or name another file with -o")
    with tempfile.TemporaryDirectory(prefix="anabranch-export-") as scratch:
        approved = Path(scratch) / "terms.json"
        approved.write_bytes(terms.encode())
        module = [sys.executable, "-P", "-m", "silo_agent.training.merging"]
        argv = [*module, what, wanted.code, approved, model, folder, *filter(None, [wanted.base])]
        try:
            done = subprocess.run(
                [str(one.absolute() if isinstance(one, Path) else one) for one in argv],
                capture_output=True,
                timeout=REBUILD_SECONDS,
                env=os.environ | SAME_HASHES,
                cwd=scratch,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Refused(
                Reason.TASK_HUNG, f"{wanted.code}: its model was not made in {REBUILD_SECONDS} s"
            ) from error
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip()[-TRACEBACK_CHARACTERS:]
        raise Refused(Reason.TASK_FAILED, f"{folder} could not be made from {wanted.code}:\n{told}")
