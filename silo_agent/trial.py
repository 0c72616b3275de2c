"""`anabranch-silo try`: a job's code against this site's data for a few steps, without a federation.

The same training process, fence and checks as a real cycle; what it makes is thrown away and nothing is sent.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused, wording
from anabranch.terms import JobFile, JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from anabranch.wire.manifest import Manifest
from anabranch.wire.tensors import check_file, check_values, read_tensors, write_tensors
from silo_agent.policy import Binding, Bound, Model, Policy
from silo_agent.trainer import TaskFailed, Trainer, Watch
from silo_agent.training import channel
from silo_agent.training.archive import pack, unpack
from silo_agent.training.isolation import available, command, environment
from silo_agent.training.launcher import Launcher
from silo_agent.training.made import Made, parse_made

MODEL_SECONDS = 600.0  # to build version 0
TAIL = 4000  # characters of the training log that are shown when the code fails

Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Tried:
    steps: int
    loss: float | None  # of the last step; None when the job's code reports none
    metrics: dict[str, float]  # of training
    before: dict[str, float] | None  # evaluation of version 0; None when the job cannot evaluate
    after: dict[str, float] | None
    norm: float  # L2, of the update's trainable tensors
    update_bytes: int
    isolation: str


def read_job(path: Path) -> tuple[Path, JobFile]:
    """The code folder and job file that `path` names: a folder with job.toml, or the TOML file itself."""
    toml = path / "job.toml" if path.is_dir() else path
    try:
        return toml.parent, parse_job_file(toml.read_text("utf-8"), str(toml))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"{toml} cannot be read: {wording(error)}; a job is a folder with job.toml and the task's code",
        ) from error


def given(folder: Path, rules: Policy, data: Path | None, base: Path | None, where: Path) -> Bound:
    """What the job in `folder` may use: `data` and `base`, or what the policy `where` binds for them.

    Raises Refused naming what is missing.
    """
    wanted = read_job(folder)[1].job
    binding = Binding(path=data.resolve()) if data is not None else rules.data.get(wanted.data)
    if binding is None:
        raise Refused(
            Reason.POLICY,
            f"{where} binds no data {wanted.data!r}: add [data.{wanted.data}], or give --data PATH",
        )
    if wanted.base is None:
        return Bound(binding, None)
    model = Model(path=base.resolve()) if base is not None else rules.models.get(wanted.base)
    if model is None:
        raise Refused(
            Reason.POLICY,
            f"{where} binds no model {wanted.base!r}: add [models.{wanted.base}], or give --base PATH",
        )
    if base is None and (lacking := model.lacks(wanted.base)):
        raise Refused(Reason.NOT_FOUND, ": ".join(lacking))
    return Bound(binding, model.folder)


def try_job(
    path: Path,
    bound: Bound,
    interpreter: Path,
    steps: int | None,
    progress: Progress,
    processes: int = 1,
    silo: str | None = None,
) -> Tried:
    """`processes`: of a script. `silo`: as whom.

    Raises Refused; for TASK_FAILED and its like the message ends with the traceback.
    """
    source, file = read_job(path)
    with tempfile.TemporaryDirectory(prefix="anabranch-try-") as scratch:
        home = Path(scratch)
        home.chmod(0o755)  # a process of another user reads the job in it
        folder = home / "jobs" / file.job.name
        archive = pack(source)
        unpack(archive, folder / "archive")
        initial = folder / "models" / "initial.safetensors"
        made = _version_0(folder, file, initial, interpreter, bound.base)
        terms = JobTerms(
            file=file,
            archive_sha256=sha256(archive),
            initial_sha256=sha256(initial.read_bytes()),
            manifest_sha256=made.manifest.digest(),
            base_sha256=made.base_sha256,
        )
        reach = [home / "jobs", bound.data.path, *([bound.base] if bound.base is not None else [])]
        isolated = available(home, reach, interpreter)
        with Launcher(home, interpreter, processes=processes, silo=silo) as launcher:
            trainer = Trainer(launcher, folder, terms, bound, isolated)
            try:
                return _run(trainer, folder, file, made.manifest, initial, steps, progress, isolated.detail)
            except TaskFailed as failure:
                trainer.stop()  # only when the process has ended is the whole of what it printed in its log
                raise Refused(failure.code, f"{failure}\n{_tail(folder / 'training.log')}") from failure
            finally:
                trainer.stop()


def _run(
    trainer: Trainer,
    folder: Path,
    file: JobFile,
    manifest: Manifest,
    initial: Path,
    steps: int | None,
    progress: Progress,
    isolation: str,
) -> Tried:
    last: list[float | None] = [None]

    def note(told: channel.Progress) -> None:
        last[0] = told.get("loss")
        progress(told["step"], told["steps"], last[0])

    watch, out = Watch(lambda: None, note), folder / "work" / "update.safetensors"
    before = _evaluate(trainer, file, initial, "before")
    trained = trainer.train(
        {
            "do": "train",
            "cycle": "try",
            "version": 0,
            "parameters": str(initial),
            "steps": steps or file.training.local_steps,
            "out": str(out),
        },
        watch,
    )
    try:
        check_file(out, manifest)
        norm = check_values(out, manifest)
    except (Refused, FileNotFoundError) as error:
        raise Refused(Reason.TASK_GARBAGE, f"the code ran, but wrote no valid update: {error}") from error
    after = None
    if before is not None:
        result = folder / "models" / "result.safetensors"
        _apply(initial, out, result, manifest)
        after = _evaluate(trainer, file, result, "after")
    metrics = trained["metrics"]
    loss = last[0] if last[0] is not None else metrics.get("loss")
    return Tried(trained["steps"], loss, metrics, before, after, norm, manifest.file_bytes, isolation)


def _evaluate(trainer: Trainer, file: JobFile, parameters: Path, cycle: str) -> dict[str, float] | None:
    watch = Watch(lambda: None, lambda told: None)
    try:
        split = file.evaluation.split
        return trainer.evaluate(
            {"do": "evaluate", "cycle": cycle, "version": 0, "parameters": str(parameters), "split": split},
            watch,
        )["metrics"]
    except TaskFailed as failure:
        if failure.exception in ("NoEvaluate", "EvaluationUnsupported"):
            return None
        raise


def _version_0(folder: Path, file: JobFile, out: Path, interpreter: Path, base: Path | None) -> Made:
    out.parent.mkdir()
    description = folder / "job.json"
    description.write_text(file.model_dump_json(), "utf-8")
    argv: list[Any] = [
        *command(interpreter, "silo_agent.training.initial"),
        folder / "archive",
        description,
        out,
        *([base] if base is not None else []),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, env=environment(), timeout=MODEL_SECONDS, cwd=folder, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(Reason.TASK_FAILED, f"version 0 could not be built: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()[-TAIL:]
        raise Refused(Reason.TASK_FAILED, f"version 0 could not be built from the job's code:\n{said}")
    return parse_made(done.stdout)


def _apply(initial: Path, delta: Path, out: Path, manifest: Manifest) -> None:
    """The model after the cycle: base plus delta for what is trained, the new values of buffers."""
    base, change = read_tensors(initial, manifest), read_tensors(delta, manifest)
    new = {
        s.name: base[s.name] + change[s.name] if s.role == "trainable" else change[s.name]
        for s in manifest.specs
    }
    write_tensors(out, manifest, new)


def _tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace")[-TAIL:].rstrip()
    except OSError:
        return "(no training log)"
