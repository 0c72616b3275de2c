"""An agent that runs in this process, with a training process that does what a test says."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt, verify_receipt
from silo_agent import identity
from silo_agent.agent import Agent
from silo_agent.config import Home
from tests.silo_agent.world import ORIGIN

TRAINS = """
import json, struct
import numpy as np

def answer(request, send):
    if request["do"] == "evaluate":
        send({"is": "evaluated", "cycle": request["cycle"], "metrics": {"accuracy": 0.75}, "num_examples": 12})
        return
    for step in range(request["steps"]):
        send({"is": "progress", "cycle": request["cycle"], "step": step + 1, "steps": request["steps"], "loss": 1.0})
    data = open(request["parameters"], "rb").read()
    start = 8 + int.from_bytes(data[:8], "little")
    values = np.frombuffer(data[start:], "<f4") * 0 + np.float32(0.5)
    open(request["out"], "wb").write(data[:start] + values.tobytes())
    steps, metrics = request["steps"], {"loss": 1.0}
    send({"is": "trained", "cycle": request["cycle"], "num_examples": 12, "steps": steps, "metrics": metrics})
"""
NAN = TRAINS.replace("np.float32(0.5)", "np.float32('nan')")
SHORT = TRAINS.replace("values.tobytes()", "values.tobytes()[:-4]")
SILENT = TRAINS.replace('    open(request["out"]', '    0 and open(request["out"]')
RAISES = "def answer(request, send):\n    raise ValueError('a secret record')\n"
HANGS = "import time\ndef answer(request, send):\n    time.sleep(600)\n"
DIES = "import os\ndef answer(request, send):\n    os._exit(3)\n"
BABBLES = "def answer(request, send):\n    send({'is': 'root', 'please': True})\n"


@dataclass
class Running:
    agent: Agent
    thread: threading.Thread
    home: Home
    failure: list[BaseException]

    def stop(self) -> None:
        self.agent.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def ended(self) -> BaseException:
        self.thread.join(20)
        (failure,) = self.failure
        return failure


def said(capsys: Any) -> str:
    captured = capsys.readouterr()
    return str(captured.out + captured.err)


def allow(home: Home, interpreter: Path, *digests: str, extra: str = "") -> None:
    data = home.path / "records"
    data.mkdir(exist_ok=True)
    listed = ", ".join(f'"{digest}"' for digest in digests)
    home.policy.write_text(
        f'[data.records]\npath = "{data}"\n[approve]\nterms = [{listed}]\n'
        f'[run]\nisolation = "allowed-without"\ninterpreter = "{interpreter}"\n{extra}'
    )


def receipts(home: Home, job: str = "tiny-1") -> list[str]:
    """Types of the entries in the journal, each verified."""
    verifier = NoteVerifier.from_vkey(identity.load(home.identity).federation.log_vkey)
    types = []
    for line in (home.job(job) / "receipts.jsonl").read_text().splitlines():
        import base64

        document: dict[str, Any] = json.loads(line)
        receipt = Receipt(
            base64.b64decode(document["entry"]),
            document["index"],
            tuple(map(base64.b64decode, document["proof"])),
            document["checkpoint"],
        )
        types.append(verify_receipt(receipt, verifier, ORIGIN)[0].type)
    return types
