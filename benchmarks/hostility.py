"""What each hostile message costs a real server: memory at its peak beyond what it held, and the wait of an honest silo.

python -m benchmarks.hostility [--json FILE] [--only TEXT]

Each message of `tests.hostility.messages` is sent to one `anabranch-server` process. Memory is the kernel's high-water
mark (VmHWM), put back before each message. An honest silo, in a process of its own, asks for its jobs all the time: its
median and longest wait while the message is on its way, as multiples of the same in the quiet second before. Making some
messages keeps a core busy (gzip, a header of 73 MB), which the honest silo feels too when cores are few.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from anabranch.v1 import federation_pb2, federation_pb2_grpc
from anabranch.wire import tls
from tests.e2e.federation import Federation, environment
from tests.hostility.messages import MESSAGES, Hostile
from tests.hostility.target import MIB, Target, extra_memory

PAUSE = 0.01  # seconds between two honest calls
QUIET = 1.0  # seconds of calls before each message


def honest(directory: Path) -> None:
    """The honest silo: one line per call, when it ended by the machine's monotonic clock and how long it took."""
    ca, key, chain = ((directory / name).read_bytes() for name in ("ca", "key", "chain"))
    with tls.channel((directory / "address").read_text(), ca, key, chain) as channel:
        stub: Any = federation_pb2_grpc.FederationStub(channel)
        while True:
            started = time.monotonic()
            stub.ListJobs(federation_pb2.ListJobsRequest(), timeout=60)
            ended = time.monotonic()
            print(ended, ended - started, flush=True)
            time.sleep(PAUSE)


class Honest:
    def __init__(self, target: Target, directory: Path) -> None:
        member = target.members["honest"]
        parts = {
            "ca": target.ca,
            "key": member.key,
            "chain": member.chain,
            "address": target.address().encode(),
        }
        for name, data in parts.items():
            (directory / name).write_bytes(data)
        self._lines = directory / "waits"
        command = [sys.executable, "-m", "benchmarks.hostility", "--honest", str(directory)]
        with open(self._lines, "wb") as out:
            self._process = subprocess.Popen(command, stdout=out, env=environment())
        self.waits(0.0, 1)

    def waits(self, since: float, least: int) -> list[float]:
        """Of the calls that ended after `since`, at least so many."""
        while True:
            lines = [
                line.split() for line in self._lines.read_text().splitlines(keepends=True) if "\n" in line
            ]
            found = [float(wait) for ended, wait in lines if float(ended) >= since]
            if len(found) >= least:
                return found
            time.sleep(PAUSE)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(target: Target, message: Hostile, silo: Honest) -> dict[str, Any]:
    before = time.monotonic()
    time.sleep(QUIET)
    quiet = silo.waits(before, 1)
    started = time.monotonic()
    with extra_memory(target.pid) as memory:
        answer = message.send(target)
    waits = silo.waits(started, 1)
    return {
        "message": message.name,
        "method": message.method,
        "answer": answer,
        "expected": message.expected,
        "extra_mib": round(memory.extra / MIB, 1),
        "honest_calls": len(waits),
        "honest_median": round(statistics.median(waits) / statistics.median(quiet), 1),
        "honest_longest": round(max(waits) / max(quiet), 1),
    }


def run(only: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        target = Target(Federation(Path(directory))).create()
        silo = Honest(target, Path(directory))
        try:
            return [measure(target, message, silo) for message in MESSAGES if only in message.name]
        finally:
            silo.stop()
            target.close()


def show(rows: list[dict[str, Any]]) -> None:
    print("| what is sent | to | answer | extra MiB | honest call: median | longest |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for row in rows:
        waits = f"{row['honest_median']:.1f} × | {row['honest_longest']:.1f} ×"
        print(f"| {row['message']} | {row['method']} | {row['answer']} | {row['extra_mib']:.1f} | {waits} |")


def main() -> int:
    """Exit code 1 when a message got another answer than it should, or took more than 64 MiB."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--only", default="", help="only messages whose name contains this")
    parser.add_argument("--honest", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.honest:
        honest(options.honest)
    rows = run(options.only)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["answer"] != row["expected"] or row["extra_mib"] > 64 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
