"""Version 0 of a job: `python -m silo_agent.training.initial ARCHIVE_DIR TERMS_JSON OUT [BASE]`.

Run where the job is submitted, on the submitter's own code. TERMS_JSON is a file with the job file as JSON (terms do
not exist yet: they name the digest of what is made here). BASE is the folder of the base model that the job names.
Writes the canonical tensor file OUT and prints the manifest, canonical JSON, and on a second line the digest of what is
frozen, if anything is.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

from anabranch.errors import Misuse
from anabranch.terms import JobFile
from anabranch.wire.tensors import Manifest
from silo_agent.training import script, tensors
from silo_agent.training.adapters import base_digest
from silo_agent.training.building import build_model
from silo_agent.training.channel import Message
from silo_agent.training.made import Made
from silo_agent.training.task import Garbage, SiloData, load_task


def build(archive: Path, file: JobFile, out: Path, base: Path | None = None) -> Made:
    """Make the job's model under its seed and write it to `out`. Runs the job's code, raises what it raises, and
    Garbage."""
    if not file.job.managed:
        return Made(_from_script(archive, file, out), None)
    model = build_model(load_task(archive, file.job.task, file.job.params), file, base)
    manifest = tensors.manifest_of(model, file.training.buffers)
    tensors.save_values(model, out, manifest)
    return Made(manifest, base_digest(model, file.training.buffers))


def _from_script(archive: Path, file: JobFile, out: Path) -> Manifest:
    taking = Taking(file, out)
    with contextlib.suppress(SystemExit):
        script.run(archive / file.job.task, taking)
    if taking.manifest is None:
        raise Garbage("NotFederated", f"{file.job.task} ended before `with federated(model)`")
    return taking.manifest


class Taking:
    """`script.Place` that takes the model as it is handed over and ends the script there."""

    def __init__(self, file: JobFile, out: Path) -> None:
        self.file = file
        self.data = SiloData(Path(os.devnull), {})
        self.manifest: Manifest | None = None
        self._out = out

    def enter(self, model: torch.nn.Module, manifest: Manifest) -> None:
        tensors.save_values(model, self._out, manifest)
        self.manifest = manifest
        raise SystemExit(0)

    def receive(self) -> None:
        return None

    def leaving(self) -> bool:
        return False

    def send(self, message: Message) -> NoReturn:
        raise Misuse(f"no one to send {message['is']!r} to")


def main(arguments: list[str]) -> None:
    archive, description, out, *base = map(Path, arguments)
    value: Any = json.loads(description.read_bytes())
    file = JobFile.model_validate(value.get("file", value))
    torch.set_num_threads(1)
    # What the job's code prints goes to standard error: standard output is the manifest.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        made = build(archive.resolve(), file, out, *base)
    except Garbage as error:
        sys.exit(
            str(error)
        )  # what is wrong with the task in a sentence; a traceback would only show our code
    said = made.encode()
    while said:  # a manifest may be longer than what one write takes
        said = said[os.write(answer, said) :]


if __name__ == "__main__":
    main(sys.argv[1:])
