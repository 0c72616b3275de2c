"""From a folder on a person's disk to a job the federation can approve.

Packing is deterministic, so the digest a person sees here is the digest every silo is asked to approve.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Reason, Refused, wording
from anabranch.terms import JobFile, JobTerms, parse_job_file
from anabranch.v1 import admin_pb2
from anabranch.wire import limits
from anabranch.wire.canonical import sha256
from anabranch.wire.manifest import Manifest
from anabranch.wire.tensors import canonicalise, check_file, check_values
from console.client import Admin, Logged, logged
from silo_agent.training.archive import pack
from silo_agent.training.isolation import SAME_HASHES
from silo_agent.training.made import Made, parse_made

TRACEBACK_CHARACTERS = 4000
INITIAL_SECONDS = 600  # building a model may load a large base model from disk
SUBMIT_SECONDS = 3600


@dataclass(frozen=True)
class Prepared:
    """Everything `SubmitJob` uploads. `initial` is a canonical safetensors file that holds version 0."""

    terms: JobTerms
    archive: bytes
    manifest: bytes
    initial: Path


@dataclass(frozen=True)
class Submitted:
    job: str
    terms_sha256: str
    entry: Logged


def read(path: Path) -> tuple[Path, JobFile]:
    """The folder and job file that `path` names: a folder with job.toml, or a TOML file beside the code."""
    toml = path / "job.toml" if path.is_dir() else path
    if not toml.is_file():
        raise Refused(
            Reason.NOT_FOUND, f"{toml} does not exist; a job is a folder with job.toml and the task's code"
        )
    try:
        text = toml.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(Reason.MALFORMED, f"{toml} is {wording(error)}; a job is described in TOML") from error
    file = parse_job_file(text, str(toml))
    code = file.job.task.partition(":")[0]
    if not (toml.parent / code).is_file():
        raise Refused(
            Reason.NOT_FOUND, f"{toml}: job.task names {code}, and {toml.parent / code} does not exist"
        )
    return toml.parent, file


@contextmanager
def prepared(
    folder: Path, file: JobFile, initial: Path | None = None, base: Path | None = None
) -> Iterator[Prepared]:
    """Pack `folder` and build version 0, by the task's `model()` in a process of its own or from `initial`. `base`: the
    folder of the base model that the job names.

    Raises Refused when that is missing, the archive is too large, or the model cannot be built or holds non-finite values.
    """
    _check_base(file, base)
    archive = pack(folder)
    with tempfile.TemporaryDirectory(prefix="anabranch-submit-") as scratch:
        built = Path(scratch) / "initial.safetensors"
        made = _build(folder, file, built, base)
        if initial is not None:
            _take(initial, made.manifest, built)
        check_values(built, made.manifest)
        encoded = made.manifest.encode()
        terms = JobTerms(
            file=file,
            archive_sha256=sha256(archive),
            initial_sha256=_file_sha256(built),
            manifest_sha256=sha256(encoded),
            base_sha256=made.base_sha256,
        )
        yield Prepared(terms, archive, encoded, built)


def submit(admin: Admin, job: Prepared) -> Submitted:
    """Upload a job. Returns once the server has proven the `job.submitted` entry."""
    reply = admin.stub.SubmitJob(messages(job), timeout=SUBMIT_SECONDS)
    return Submitted(reply.job, job.terms.digest(), logged(admin, reply.receipt))


def messages(job: Prepared) -> Iterator[admin_pb2.SubmitJobRequest]:
    """The header, then the archive, then version 0, in chunks of at most 1 MiB."""
    header = admin_pb2.SubmitJobHeader(
        terms=job.terms.encode(),
        archive_bytes=len(job.archive),
        initial_bytes=job.initial.stat().st_size,
        manifest=job.manifest,
    )
    yield admin_pb2.SubmitJobRequest(header=header)
    for start in range(0, len(job.archive), limits.CHUNK):
        yield admin_pb2.SubmitJobRequest(chunk=job.archive[start : start + limits.CHUNK])
    with job.initial.open("rb") as initial:
        while chunk := initial.read(limits.CHUNK):
            yield admin_pb2.SubmitJobRequest(chunk=chunk)


def _check_base(file: JobFile, base: Path | None) -> None:
    name = file.job.base
    if name is None and base is not None:
        raise Refused(Reason.MALFORMED, f"--base {base}: the job file names no base model; [job] base does")
    if name is not None and (base is None or not base.exists()):
        given = f"--base {base} does not exist" if base is not None else "its folder is not given"
        raise Refused(
            Reason.NOT_FOUND,
            f"the job adapts the base model {name!r} and {given}: add --base PATH, the folder that silos bind as "
            f"[models.{name}]",
        )


def _build(folder: Path, file: JobFile, out: Path, base: Path | None) -> Made:
    """Let the task make version 0 in a process of its own: the console itself never imports torch."""
    description = out.with_name("job.json")
    description.write_text(file.model_dump_json())
    argv = [
        sys.executable,
        "-P",
        "-m",
        "silo_agent.training.initial",
        str(folder),
        str(description),
        str(out),
        *([str(base)] if base is not None else []),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=INITIAL_SECONDS, env=os.environ | SAME_HASHES, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(
            Reason.TASK_HUNG, f"{folder}: the task did not make its model in {INITIAL_SECONDS} s"
        ) from error
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip()[-TRACEBACK_CHARACTERS:]
        raise Refused(Reason.TASK_FAILED, f"version 0 could not be built from {folder}:\n{told}")
    made = parse_made(done.stdout)
    check_file(out, made.manifest)
    return made


def _take(initial: Path, manifest: Manifest, out: Path) -> None:
    """Replace what the task made by a person's file, if it has the same tensors. Raises Refused naming the tensor."""
    if not initial.is_file():
        raise Refused(Reason.NOT_FOUND, f"--initial {initial} does not exist")
    out.unlink()
    canonicalise(initial, out, {spec.name: spec.role for spec in manifest.specs})
    check_file(out, manifest)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
