"""A training process without torch: the real launcher, channel and process, with answers from the job's `answer`."""

import json
import os
import runpy
import sys
import time
from pathlib import Path

reader, writer = map(int, os.environ["ANABRANCH_CHANNEL"].split(","))
incoming, outgoing = os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0)


def send(message):  # type: ignore[no-untyped-def]
    outgoing.write(json.dumps(message).encode() + b"\n")


begin = json.loads(incoming.readline())
task = runpy.run_path(str(Path(begin["archive"]) / "task.py"))
send({"is": "ready", "kind": "managed"})
while line := incoming.readline():
    request = json.loads(line)
    if request["do"] == "stop":
        break
    try:
        task["answer"](request, send)
    except Exception as error:
        frame = error.__traceback__
        while frame.tb_next:  # type: ignore[union-attr]
            frame = frame.tb_next  # type: ignore[union-attr]
        print(repr(error), file=sys.stderr, flush=True)
        where = f"task.py:{frame.tb_lineno}"  # type: ignore[union-attr]
        name = type(error).__name__
        send(
            {
                "is": "failed",
                "cycle": request["cycle"],
                "reason": "task_failed",
                "exception": name,
                "code_line": where,
            }
        )
time.sleep(0)
