"""From a folder on a person's disk to a job the federation can approve.

Packing is deterministic, so the digest a person sees here is the digest every silo is asked to approve.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile, JobTerms, parse_job_file
from anabranch.v1 import admin_pb2
from anabranch.wire import limits
from anabranch.wire.canonical import sha256
from anabranch.wire.tensors import check_file, check_values, parse_manifest
from console.client import Admin, Logged, logged
from silo_agent.training.archive import pack

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
        raise Refused(Reason.MALFORMED, f"{toml} is not UTF-8 text: {error}") from error
    file = parse_job_file(text, str(toml))
    code = file.job.task.partition(":")[0]
    if not (toml.parent / code).is_file():
        raise Refused(
            Reason.NOT_FOUND, f"{toml}: job.task names {code}, and {toml.parent / code} does not exist"
        )
    return toml.parent, file


@contextmanager
def prepared(folder: Path, file: JobFile, initial: Path | None = None) -> Iterator[Prepared]:
    """Pack `folder` and build version 0, by the task's `model()` in a process of its own or from `initial`.

    Raises Refused when the archive is too large, or the model cannot be built or holds non-finite values.
    """
    archive = pack(folder)
    if len(archive) > limits.ARCHIVE:
        raise Refused(
            Reason.SIZE_LIMIT,
            f"{folder} packs to {len(archive)} bytes, more than {limits.ARCHIVE}; keep data and weights out of it",
        )
    with tempfile.TemporaryDirectory(prefix="anabranch-submit-") as scratch:
        built = _build(folder, file, initial, Path(scratch))
        manifest = (Path(scratch) / "manifest.json").read_bytes()
        check_file(built, parse_manifest(manifest))
        check_values(built, parse_manifest(manifest))
        terms = JobTerms(
            file=file,
            archive_sha256=sha256(archive),
            initial_sha256=_file_sha256(built),
            manifest_sha256=sha256(manifest),
        )
        yield Prepared(terms, archive, manifest, built)


def submit(admin: Admin, job: Prepared) -> Submitted:
    """Upload a job. Returns once the server has proven the `job.submitted` entry."""
    reply = admin.stub.SubmitJob(_messages(job), timeout=SUBMIT_SECONDS)
    return Submitted(reply.job, job.terms.digest(), logged(admin, reply.receipt))


def _messages(job: Prepared) -> Iterator[admin_pb2.SubmitJobRequest]:
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


def _build(folder: Path, file: JobFile, initial: Path | None, scratch: Path) -> Path:
    """Write initial.safetensors and manifest.json into `scratch`: the console itself never imports torch."""
    argv = [sys.executable, "-m", "silo_agent.training.initial", str(folder), str(scratch)]
    if initial is not None:
        argv += ["--from", str(initial)]
    done = subprocess.run(
        argv,
        input=file.model_dump_json(),
        capture_output=True,
        text=True,
        timeout=INITIAL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Refused(
            Reason.TASK_FAILED, f"version 0 could not be built from {folder}:\n{done.stderr.strip()[-4000:]}"
        )
    return scratch / "initial.safetensors"


def _file_sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
