"""What a server works for each update, in jobs of a silo: the entrants of fashion/compare.toml that revive.

    python -m benchmarks.revival.cost OUT.json

The network and the ten teachers are those of `benchmarks.revival.device`, on one thread; revival and job are measured in
turn in the same process, several times, and the median of the ratios counts. Without revival a server adds up what comes,
which is nothing beside this.
"""

import json
import sys
from pathlib import Path
from statistics import median

from anabranch.terms import Revival
from benchmarks.revival.device import measured
from simulator.comparison import read_comparison

COMPARISON = Path(__file__).parent / "fashion" / "compare.toml"
ROUNDS, SECONDS = 5, 3.0


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    settings = {
        entrant.name: (Revival(**entrant.revival, freeze=0, warmup=0), entrant.aggregation["buffer"])
        for entrant in read_comparison(COMPARISON).entrants
        if entrant.revival is not None
    }
    ratios: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(ROUNDS):
        for name, (rule, buffer) in settings.items():
            found = measured("small", "cpu:1", SECONDS, rule)
            ratios[name].append(found["revival_s"] / found["silo_job_s"] / buffer)
    for name, of in ratios.items():
        print(f"{name:10} {median(of):6.2f} of a silo's job per update, {min(of):.2f} to {max(of):.2f}")
    Path(sys.argv[1]).write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
