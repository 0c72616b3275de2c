"""The program of the training process: `python -m silo_agent.training.runner`, started by `launcher`.

It fences itself in first. Nothing that could start a thread or run the job's code is imported before, which is why
torch and everything that needs it are imported inside functions.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from silo_agent.training import isolation

if TYPE_CHECKING:
    import torch

    from anabranch.terms import JobFile
    from anabranch.wire.tensors import Manifest
    from silo_agent.training.channel import Begin, Channel, Failed, Message, Request
    from silo_agent.training.task import SiloData

_leaving = False  # SIGTERM: save the cycle at the next step and end


@dataclass
class Setup:
    file: "JobFile"
    manifest_sha256: str
    archive: Path
    work: Path
    data: "SiloData"
    base: Path | None  # the folder of the base model, if the job names one
    base_sha256: str | None  # of what is frozen
    rank: int | None  # of LoRA's pairs, if not the job's


def main() -> int:
    """0: asked to end. 1: the job's code failed in a way that needs a new process, or the fence could not be
    closed."""
    from silo_agent.training.channel import inherited

    channel = inherited()
    begin = channel.receive()
    if begin is None or begin["do"] != "begin":
        return 1
    signal.signal(signal.SIGTERM, _leave)
    cycle: list[str] = []  # the one in progress
    try:
        fence = isolation.Fence(**begin["fence"])
        holds = isolation.move(fence)
        if begin["processes"] > 1:
            from silo_agent.training import ranks

            isolation.require_own_network(fence, holds)
            isolation.tie(fence.parent)
            fence = replace(fence, parent=os.getpid())
            if (own := ranks.split(channel, begin["processes"])) is None:
                return 0  # this process has run no code of the job
            channel = own
        sys.stdout.write(f"isolation: {isolation.close(fence, holds)}\n")  # at once: ranks share the file
        sys.stdout.flush()
        setup = _set_up(begin)
        if setup.file.job.managed:
            _serve_managed(channel, setup)
        else:
            _serve_script(channel, setup, cycle)
    except BaseException as error:
        traceback.print_exc()
        channel.send(failure(error, Path(begin["archive"]), *cycle))
        return 1
    return 0


def failure(error: BaseException, archive: Path, cycle: str | None = None) -> "Failed":
    """What the job's owner is told: a type, and a line of the job's own code. The rest stays in training.log."""
    from silo_agent.training.task import Garbage

    name, line = type(error).__name__, _line_in(archive, error)
    message: Failed = {"is": "failed", "reason": "task_failed", "exception": name}
    if isinstance(error, Garbage):
        message["reason"], message["exception"] = "task_garbage", error.kind
        line = line or _definition_in(archive, error.culprit)
    # By name: torch, whose error it is, may not have been imported yet.
    elif isinstance(error, MemoryError) or name == "OutOfMemoryError":
        message["reason"] = "task_out_of_memory"
    if not (name.isidentifier() and name.isascii() and len(name) <= 64):
        message["exception"] = "Exception"  # a type can be given any name when it is made
    if line:
        message["code_line"] = line
    if cycle is not None:
        message["cycle"] = cycle
    return message


def _set_up(begin: "Begin") -> Setup:
    import torch

    from anabranch.terms import JobTerms
    from silo_agent.training.task import SiloData, load_transform

    torch.set_num_threads(begin["threads"])
    terms = JobTerms.model_validate(begin["terms"])
    data = begin["data"]
    transform = {"transform": load_transform(data["transform"])} if data["transform"] else {}
    return Setup(
        file=terms.file,
        manifest_sha256=terms.manifest_sha256,
        archive=Path(begin["archive"]),
        work=Path(begin["work"]),
        data=SiloData(Path(data["path"]), data["params"], **transform),
        base=Path(begin["base"]) if "base" in begin else None,
        base_sha256=terms.base_sha256,
        rank=begin.get("rank"),
    )


def _serve_managed(channel: "Channel", setup: Setup) -> None:
    from silo_agent.training.adapters import check_base
    from silo_agent.training.managed import Managed
    from silo_agent.training.task import load_task

    def build() -> Managed:
        task = load_task(setup.archive, setup.file.job.task, setup.file.job.params)
        managed = Managed(task, setup.file, setup.data, setup.work, setup.base, rank=setup.rank)
        check_manifest(managed.manifest, setup.manifest_sha256)
        check_base(managed.base_sha256, setup.base_sha256, setup.base)
        return managed

    managed: Managed | None = build()
    channel.send({"is": "ready", "kind": "managed"})
    while not _leaving and (request := channel.receive()) is not None and request["do"] != "stop":
        try:
            managed = managed or build()
            answer: Message | None = None
            if request["do"] == "train":
                answer = managed.train(request, channel.report, lambda: _leaving)
            elif request["do"] == "evaluate":
                answer = managed.evaluate(request, channel.report)
        except BaseException as error:
            traceback.print_exc()
            managed = None  # whatever the failure left in the model, the next cycle starts with a new one
            answer = failure(error, setup.archive, None if request["do"] == "begin" else request["cycle"])
        if answer is not None:
            channel.send(answer)


def _serve_script(channel: "Channel", setup: Setup, cycle: list[str]) -> None:
    from silo_agent.training import script

    place = InFederation(channel, setup, cycle)
    try:
        script.run(setup.archive / setup.file.job.task, place)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    if not place.entered:
        from silo_agent.training.task import Garbage

        raise Garbage("NotFederated", "the script ended without `with federated(model)`")


class InFederation:
    """`script.Place` of a script that the agent started. `cycle` holds the one in progress, for the report of a
    failure."""

    def __init__(self, channel: "Channel", setup: Setup, cycle: list[str]) -> None:
        self.file, self.data = setup.file, setup.data
        self.entered = False
        self._channel, self._sha256, self._cycle = channel, setup.manifest_sha256, cycle

    def enter(self, model: "torch.nn.Module", manifest: "Manifest") -> None:
        check_manifest(manifest, self._sha256)
        self.entered = True
        self._channel.send({"is": "ready", "kind": "script"})

    def receive(self) -> "Request | None":
        self._cycle.clear()
        request = None if _leaving else self._channel.receive()
        if request is None or request["do"] == "stop":
            return None
        if request["do"] != "begin":
            self._cycle.append(request["cycle"])
        return request

    def leaving(self) -> bool:
        return _leaving

    def send(self, message: "Message") -> None:
        if message["is"] == "progress":
            self._channel.report(message)
        else:
            self._cycle.clear()
            self._channel.send(message)


def check_manifest(manifest: "Manifest", approved: str) -> None:
    """Raises Garbage when this model is not the one the silos approved: another library version, other parameters."""
    from silo_agent.training.task import Garbage

    if manifest.digest() != approved:
        raise Garbage(
            "OtherModel",
            f"the model's tensors have manifest {manifest.digest()}, the approved job has {approved}",
        )


def _leave(*_: object) -> None:
    global _leaving
    _leaving = True


def _line_in(archive: Path, error: BaseException) -> str | None:
    """`"task.py:41"`: the innermost line of the job's own code in the traceback, also of code that does not parse."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    for file, line in reversed(frames):
        if Path(file).is_relative_to(archive):
            return f"{Path(file).relative_to(archive)}:{line}"
    return None


def _definition_in(archive: Path, function: Callable[..., object] | None) -> str | None:
    code = getattr(function, "__code__", None)
    if code is None or not Path(code.co_filename).is_relative_to(archive):
        return None
    return f"{Path(code.co_filename).relative_to(archive)}:{code.co_firstlineno}"


if __name__ == "__main__":
    # Without the interpreter's shutdown: threads that the job's code left behind may never end.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
