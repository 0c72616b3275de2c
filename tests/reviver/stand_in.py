"""A job's process without torch: every result is one everywhere. For version 2 it fails as `[job.params]` says."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from anabranch.wire.tensors import read_manifest, write_tensors
from silo_agent.training.channel import Channel, Revive, inherited


def fail(channel: Channel, how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        time.sleep(3600)
    if how == "memory":
        channel.send({"is": "failed", "reason": "task_failed", "exception": "MemoryError"})
    if how == "babbles":
        channel._writer.write(b"no message\n")
        channel._writer.flush()
    if how == "another":
        channel.send({"is": "revived", "cycle": "another"})


def revive(channel: Channel, request: Revive, how: str) -> None:
    if how == "unsupported":
        channel.send({"is": "rested", "cycle": request["cycle"], "reason": "unsupported", "why": "no_inputs"})
        return
    manifest = read_manifest(request["head"])
    value = np.nan if how == "nan" else 1.0
    arrays = {spec.name: np.full(spec.shape, value, np.float32) for spec in manifest.specs}
    write_tensors(request["out"], manifest, arrays)
    if how == "link":
        os.replace(request["out"], request["out"] + ".moved")
        os.symlink(request["out"] + ".moved", request["out"])
    if how == "nothing":
        os.unlink(request["out"])
    channel.send({"is": "revived", "cycle": request["cycle"], "before": 0.5, "after": 0.75})


def main() -> None:
    channel = inherited()
    begin = channel.receive()
    assert begin is not None
    assert begin["do"] == "begin"
    told = Path(begin["work"]).with_name("told.jsonl")
    says = begin["terms"]["file"]["job"]["params"].get("how", "")
    channel.send({"is": "ready", "kind": "managed"})
    while (request := channel.receive()) is not None and request["do"] == "revive":
        with open(told, "a") as file:
            file.write(json.dumps(request | {"pid": os.getpid(), "device": begin.get("device")}) + "\n")
        how = says if request["version"] == 2 or says == "unsupported" else ""
        fail(channel, how)
        revive(channel, request, how)


if __name__ == "__main__":
    main()
