"""`python -m benchmarks.revival.attacks DIR [SEED ...]`: malicious silos of ten, with revival and without.

Every attack by one, two and three silos. What was run before is not run again. A table on standard output,
DIR/attacks.json and DIR/attacks.png.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.revival.attacks.picture import draw
from benchmarks.revival.attacks.playing import ATTACKS, LOOKED, Case, play
from benchmarks.strategies.data import fashion

SCENARIO = Path(__file__).parents[2] / "strategies" / "fashion" / "scenario.toml"
MALICIOUS = (1, 2, 3)
QUIET = "trigger"  # whose run by nobody is the one without an attack
Runs = Mapping[Case, Mapping[str, Any]]


def value(run: Mapping[str, Any], metric: str) -> float:
    """Of the average beside the head, in percent: the mean over the looks of the second half."""
    return 100 * mean(value for at, value in run["averaged"][metric] if at >= LOOKED)


def over(runs: Runs, seeds: Sequence[int], attack: str, malicious: int, revived: bool, metric: str) -> float:
    return mean(value(runs[Case(attack, malicious, revived, seed)], metric) for seed in seeds)


def row(runs: Runs, seeds: Sequence[int], attack: str, malicious: int) -> dict[str, Any]:
    """`adds`: what revival adds to the attack's success, in points; that of a patch is how many pictures it turns."""
    found: dict[str, Any] = {"attack": attack, "malicious": malicious}
    for metric in ("accuracy", "fooled"):
        for how, revived in (("plain", False), ("revived", True)):
            found[f"{metric} {how}"] = over(runs, seeds, attack, malicious, revived, metric)
            quiet = over(runs, seeds, QUIET, 0, revived, metric)
            found[f"{metric} {how} lost"] = quiet - found[f"{metric} {how}"]
    if ATTACKS[attack].patched:
        found["adds"] = found["fooled revived"] - found["fooled plain"]
    else:
        found["adds"] = found["accuracy revived lost"] - found["accuracy plain lost"]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ("accuracy plain", "accuracy revived", "fooled plain", "fooled revived", "adds")
    lines = [
        f"| attack | malicious | {' | '.join(columns)} |",
        f"| --- | ---: |{' ---: |' * len(columns)}",
    ]
    for one in rows:
        values = " | ".join(
            f"{one[column]:+.1f}" if column == "adds" else f"{one[column]:.1f}" for column in columns
        )
        lines.append(f"| {one['attack']} | {one['malicious']} | {values} |")
    return "\n".join(lines)


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place, seeds = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [0]
    data, results = place / "data", place / "runs"
    if not (data / "test.npz").exists():
        fashion(data)
    (data / "scenario.toml").write_text(SCENARIO.read_text())
    results.mkdir(parents=True, exist_ok=True)
    whom = [(QUIET, 0), *((attack, count) for attack in ATTACKS for count in MALICIOUS)]
    runs = {}
    for case in [Case(*one, revived, seed) for one in whom for seed in seeds for revived in (False, True)]:
        path = results / f"{case.name}.json"
        if not path.exists():
            path.write_text(json.dumps(play(data, case, {})))
        runs[case] = json.loads(path.read_text())
        found = {metric: round(value(runs[case], metric), 1) for metric in ("accuracy", "fooled")}
        print(case.name, found, runs[case].get("ends", {}), flush=True)
    rows = [row(runs, seeds, *one) for one in whom]
    (place / "attacks.json").write_text(json.dumps({"seeds": seeds, "rows": rows}, indent=1))
    draw(rows, place / "attacks.png")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
