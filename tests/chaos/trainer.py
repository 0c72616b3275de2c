"""The training process of a chaos run, in the place of `silo_agent.training.runner`: real fence, real pipe, no torch.

Importing torch after every kill would be most of what two cores do. An update follows from the lease, so that one that
is made twice is the same twice.
"""

import signal
import sys
from hashlib import sha256
from pathlib import Path

from silo_agent.training import isolation
from silo_agent.training.channel import Train, inherited

# What a silo's policy names as its interpreter: everything but the training process is left to Python itself.
INTERPRETER = """#!/bin/sh
case "$*" in
  *silo_agent.training.runner*) PYTHONPATH={root} exec {python} -P -s -B -m tests.chaos.trainer ;;
  *) exec {python} "$@" ;;
esac
"""


def main() -> int:
    channel = inherited()
    begin = channel.receive()
    if begin is None or begin["do"] != "begin":
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print("isolation:", isolation.enter(isolation.Fence(**begin["fence"])), flush=True)
    channel.send({"is": "ready", "kind": "managed"})
    while (request := channel.receive()) is not None and request["do"] != "stop":
        if request["do"] == "train":
            train(request)
            done = {"is": "trained", "steps": request["steps"]}
        elif request["do"] == "evaluate":
            done = {"is": "evaluated"}
        facts = {"cycle": request["cycle"], "num_examples": 10, "metrics": {"accuracy": 0.5}}
        channel.send({**done, **facts})  # type: ignore[typeddict-item]
    return 0


def train(request: Train) -> None:
    import numpy as np

    from anabranch.wire.tensors import read_manifest, write_tensors

    manifest = read_manifest(Path(request["parameters"]))
    value = int.from_bytes(sha256(request["cycle"].encode()).digest()[:2]) / 2**20
    tensors = {spec.name: np.full(spec.shape, value, np.float32) for spec in manifest.specs}
    write_tensors(Path(request["out"]), manifest, tensors)


if __name__ == "__main__":
    sys.exit(main())
