"""How fast a simulation goes by: updates per minute of one core, without and with the real server's rooms and log.

python -m benchmarks.simulator

A formula trains, so what is measured is the simulator. Each run has a process of its own; the last one has a thousand silos.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import structlog

from anabranch.terms import parse_job_file
from simulator.run import Told, play
from simulator.scenario import Scenario

JOB = '[job]\nname = "vector"\ntask = "task.py:Vector"\n[evaluation]\nevery = 1000000\n[stop]\nversions = 1000000\n'
RUNS = (
    ("20 silos", 20, "300s", False),
    ("20 silos, signatures and log", 20, "40s", True),
    ("1,000 silos", 1000, "20s", False),
)


def measure(silos: int, horizon: str, log: bool) -> dict[str, float]:
    """One run in this process; a model of a thousand parameters, a version for every ten updates."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    scenario = Scenario.model_validate(
        {
            "horizon": horizon,
            "log": log,
            "synthetic": {"parameters": 1000},
            "silos": [{"count": silos, "train": {"kind": "lognormal", "median": 1.0, "sigma": 0.2}}],
        }
    )
    job = Told(parse_job_file(JOB + "[aggregation]\nbuffer = 10\nema = 0\n"), Path())  # nothing is read there
    cpu = time.process_time()
    finished = play([job], scenario)
    updates = len(finished.rows.updates["update"])
    return {
        "updates": updates,
        "updates_per_minute": round(60 * updates / finished.seconds),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True")))
        return
    for name, *given in RUNS:
        command = [sys.executable, "-m", "benchmarks.simulator", *map(str, given)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{name:30} {done.stdout.strip()}")


if __name__ == "__main__":
    main()
