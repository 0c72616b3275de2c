"""`python -m benchmarks.strategies.natural DIR [NAME …]`: data sets whose silos are real, from ANABRANCH_DATA.

Strategies beside each silo alone and all records in one place. Pages in DIR/NAME-compared; figures on standard output
and in DIR/natural.json. What was finished before is not run again.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.strategies import data
from benchmarks.strategies.alone import Line, Told, Trial, local, pooled
from simulator.statistics import interval

HERE = Path(__file__).parent
MAKE = {"heart": data.heart, "school": data.school, "reviews": data.reviews}
TASKS = {  # that the lines are tuned over: by itself, on everything
    "heart": ((5, 20, 80), (20, 80, 320)),
    "school": ((1, 3, 9), (20, 60, 180)),
    "reviews": ((5, 15, 45), (20, 60, 180)),
}


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(MAKE)
    found = {name: _played(out, name) for name in names}
    (out / "natural.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, rows in found.items():
        print(
            f"\n{name}: mean over silos, 95 % interval over seeds; worst silo; silos better than by themselves"
        )
        for row in rows:
            low, high = row["interval"]
            print(
                f"  {row['line']:22} {row['mean']:.4f}  {low:.4f} to {high:.4f}  "
                f"{row['worst']:.4f}  {row['better']} of {row['silos']}"
            )
    return 0


def _played(out: Path, name: str) -> list[dict[str, Any]]:
    place, jobs, results = out / name, out / "job", out / f"{name}-compared"
    if not (place / "all.npz").exists():
        MAKE[name](place)
    shutil.copytree(HERE / "silos" / name, place, dirs_exist_ok=True)
    shutil.copytree(HERE / "silos" / "job", jobs, dirs_exist_ok=True)
    program = Path(sys.executable).with_name("anabranch")
    subprocess.run([program, "compare", place / "compare.toml", "-o", results], check=True)
    document = json.loads((results / "compare.json").read_text())
    trial = Trial(jobs / f"{name}.toml", document["tuning_seeds"][0], document["seeds"])
    short, long = TASKS[name]
    alone = local(trial, place, short)
    rows = [_row("each silo by itself", {"tasks": alone.tasks}, alone.runs, alone, document["mode"])]
    for entrant in document["entrants"]:
        runs = [_final(results / "runs" / key) for key in entrant["runs"]]
        rows.append(_row(entrant["name"], entrant["chosen"], runs, alone, document["mode"]))
    whole = pooled(trial, place, long)
    return [*rows, _row("all in one place", {"tasks": whole.tasks}, whole.runs, alone, document["mode"])]


def _final(folder: Path) -> Told:
    found: Told = json.loads((folder / "run.json").read_text())["jobs"][0]["final"]
    return found


def _row(line: str, chosen: Told, runs: Sequence[Told], alone: Line, mode: str) -> dict[str, Any]:
    means, sign = interval([run["mean"] for run in runs]), 1 if mode == "max" else -1
    each = {name: fmean(run[name] for run in runs) for name in runs[0] if name.startswith("of_")}
    own = {name: fmean(run[name] for run in alone.runs) for name in each}
    return {
        "line": line,
        "chosen": chosen,
        "mean": means.mean,
        "interval": [means.low, means.high],
        "worst": fmean(run["worst"] for run in runs),
        "better": sum(sign * (each[name] - own[name]) > 0 for name in each),
        "silos": len(each),
        "each": each,
    }


if __name__ == "__main__":
    sys.exit(main())
