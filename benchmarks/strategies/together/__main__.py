"""`python -m benchmarks.strategies.together DIR`: two jobs one after the other, by turns, and by FedAST.

A job ends when the mean of its last LOOKS looks has reached its target; from then on the other one has all silos. What
counts is the virtual time at which the later of the two got there.
"""

import json
import math
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

from benchmarks.strategies.data import fashion, people
from benchmarks.strategies.together.playing import HERE, TARGETS, WAYS, Played, play

SEEDS = (0, 1, 2, 3)


def both(played: Mapping[tuple[str, int], Played], seed: int) -> dict[str, float]:
    """Way → when both jobs had reached their targets; infinite for never."""

    def at(way: str, job: str) -> float:
        return played[way, seed].reached.get(job, math.inf)

    together = [way for way, (names, _) in WAYS.items() if len(names) == 2]
    after = at("clothes alone", "clothes") + at("income alone", "income")
    return {"one after the other": after} | {way: max(at(way, job) for job in TARGETS) for way in together}


def main() -> int:
    """Prepare DIR, play every way with every seed on two processes, print a table and leave DIR/together.json."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place = Path(sys.argv[1])
    for prepare, folder in ((fashion, place / "clothes"), (people, place / "people")):
        if not (folder / "test.npz").exists():
            prepare(folder)
    (place / "scenario.toml").write_text((HERE / "scenario.toml").read_text())
    played: dict[tuple[str, int], Played] = {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for one in pool.map(play, *zip(*((place, *case) for case in product(WAYS, SEEDS)), strict=True)):
            played[one.way, one.seed] = one
            print(vars(one), flush=True)
    (place / "together.json").write_text(json.dumps([vars(one) for one in played.values()], indent=1))
    times = {seed: both(played, seed) for seed in SEEDS}
    for way in times[SEEDS[0]]:
        each = [times[seed][way] for seed in SEEDS]
        ratios = [times[seed][way] / times[seed]["one after the other"] for seed in SEEDS]
        print(
            f"{way:20} mean {mean(each):6.1f}  {mean(ratios):6.2f}  "
            + " ".join(f"{one:5.0f}" for one in each)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
