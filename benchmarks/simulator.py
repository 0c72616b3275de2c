"""How fast a simulation goes by: updates per minute, without and with the real server's rooms and log.

python -m benchmarks.simulator

A formula trains, so what is measured is the simulator. Each run has a process and thus a core of its own, as the runs of
several seeds have; where there are two at once, their updates per minute are added up. What comes before the first update
and after the last one (enrolment, export) is left out.
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
RUNS = (  # name, processes, silos, horizon, log
    ("20 silos", 1, 20, "300s", False),
    ("1,000 silos", 1, 1000, "20s", False),
    ("20 silos, signatures and log", 1, 20, "100s", True),
    ("the same, two seeds at once", 2, 20, "100s", True),
)


def measure(seed: int, silos: int, horizon: str, log: bool) -> dict[str, float]:
    """One run in this process; a model of a thousand parameters, a version for every ten updates."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    scenario = Scenario.model_validate(
        {
            "seed": seed,
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
        seed, silos, horizon, log = sys.argv[1:]
        print(json.dumps(measure(int(seed), int(silos), horizon, log == "True")))
        return
    for name, processes, *given in RUNS:
        started = [_start(seed, *given) for seed in range(processes)]
        done = [json.loads(one.communicate()[0]) for one in started]
        each_minute = sum(one["updates_per_minute"] for one in done)
        print(f"{name:30} {each_minute:>9,} updates/min   {' '.join(map(json.dumps, done))}")


def _start(*given: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.simulator", *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
