"""`python -m benchmarks.revival.attacks DIR [SEED ...]`: malicious silos of ten, with revival and without.

Every attack by one, two and three silos. What was run before is not run again. A table on standard output,
DIR/attacks.json and DIR/attacks.png.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.revival.attacks.picture import draw
from benchmarks.revival.attacks.playing import ATTACKS, LOOKED, Case, play
from benchmarks.strategies.data import fashion

SCENARIO = Path(__file__).parents[2] / "strategies" / "fashion" / "scenario.toml"
MALICIOUS = (1, 2, 3)
METRICS = ("accuracy", "fooled", "turned")
QUIET = "trigger"  # whose run by nobody is the one without an attack
Runs = Mapping[Case, Mapping[str, Any]]


def value(run: Mapping[str, Any], metric: str) -> float:
    """Of the average beside the head, in percent: the mean over the looks of the second half."""
    return 100 * mean(value for at, value in run["averaged"][metric] if at >= LOOKED)


def success(runs: Runs, case: Case) -> float:
    """Of a patch: pictures it turns. Of what only harms: accuracy lost against the same run without it. In points."""
    if ATTACKS[case.attack].patched:
        return value(runs[case], "turned")
    quiet = replace(case, attack=QUIET, malicious=0)
    return value(runs[quiet], "accuracy") - value(runs[case], "accuracy")


def pull(run: Mapping[str, Any], attack: str) -> float:
    """What one revival did by itself to the attack's success in the mean, in points."""
    metric, sign = ("turned", 1) if ATTACKS[attack].patched else ("accuracy", -1)
    return 100 * sign * mean(one[metric] for one in run["pulls"])


def row(runs: Runs, seeds: Sequence[int], attack: str, malicious: int) -> dict[str, Any]:
    """Means over the seeds. `adds`: what revival adds to the attack's success, in points."""
    found: dict[str, Any] = {"attack": attack, "malicious": malicious}
    plain = [Case(attack, malicious, False, seed) for seed in seeds]
    revived = [replace(case, revived=True) for case in plain]
    for metric in METRICS:
        for how, cases in (("plain", plain), ("revived", revived)):
            found[f"{metric} {how}"] = mean(value(runs[case], metric) for case in cases)
    each = [success(runs, b) - success(runs, a) for a, b in zip(plain, revived, strict=True)]
    return found | {
        "adds": mean(each),
        "each": each,
        "one revival": mean(pull(runs[case], attack) for case in revived),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [f"{metric} {how}" for metric in METRICS for how in ("plain", "revived")]
    columns += ["adds", "one revival"]
    lines = [
        f"| attack | malicious | {' | '.join(columns)} |",
        f"| --- | ---: |{' ---: |' * len(columns)}",
    ]
    for one in rows:
        values = " | ".join(f"{one[column]:.1f}" for column in columns)
        lines.append(f"| {one['attack'] if one['malicious'] else 'nobody'} | {one['malicious']} | {values} |")
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
        found = {metric: round(value(runs[case], metric), 1) for metric in METRICS}
        print(case.name, found, runs[case].get("ends", {}), flush=True)
    rows = [row(runs, seeds, *one) for one in whom]
    (place / "attacks.json").write_text(json.dumps({"seeds": seeds, "rows": rows}, indent=1))
    draw(rows, place / "attacks.png")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
