"""The program of a job's process: `python -m reviver.runner`, started by `reviver.child`.

It fences itself in first. Nothing that could start a thread or run the job's code is imported before, which is why
torch and everything that needs it are imported inside functions.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from silo_agent.training import isolation

if TYPE_CHECKING:
    from reviver.lessons import Lessons, Unable
    from silo_agent.training.channel import Begin, Channel


def main() -> int:
    """0: asked to end. 1: the job's code failed, or the fence could not be closed; what was learned is lost."""
    from silo_agent.training.channel import inherited

    channel = inherited()
    begin = channel.receive()
    if begin is None or begin["do"] != "begin":
        return 1
    cycle: list[str] = []  # the task at hand
    try:
        print("isolation:", isolation.enter(isolation.Fence(**begin["fence"])), flush=True)
        lessons = _set_up(begin)
        channel.send({"is": "ready", "kind": "managed"})
        _serve(channel, lessons, cycle)
    except BaseException as error:
        from silo_agent.training.runner import failure

        traceback.print_exc()
        channel.send(failure(error, Path(begin["archive"]), *cycle))
        return 1
    return 0


def _set_up(begin: "Begin") -> "Lessons | Unable":
    from reviver.device import settle

    device = settle(begin["device"])
    import torch

    from anabranch.terms import JobTerms
    from reviver.lessons import lessons_of

    torch.set_num_threads(begin["threads"])
    base = Path(begin["base"]) if "base" in begin else None
    return lessons_of(Path(begin["archive"]), JobTerms.model_validate(begin["terms"]), device, base)


def _serve(channel: "Channel", lessons: "Lessons | Unable", cycle: list[str]) -> None:
    while (request := channel.receive()) is not None and request["do"] == "revive":
        cycle[:] = [request["cycle"]]
        channel.send(lessons.revive(request))


if __name__ == "__main__":
    # Without the interpreter's shutdown: threads that the job's code left behind may never end.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
