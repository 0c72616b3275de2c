"""`python -m benchmarks.revival.attacks DIR [MALICIOUS [SEED ...]]`: malicious silos of ten, with revival and without.

Every attack by so many silos (3). What was run before is not run again. A table of all that was ever run in DIR on standard
output, and DIR/attacks.svg.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.revival.attacks.picture import draw
from benchmarks.revival.attacks.playing import ATTACKS, Case, play
from benchmarks.strategies.data import fashion

SCENARIO = Path(__file__).parents[1] / "fashion" / "scenario.toml"
METRICS = ("accuracy", "turned", "fooled")
KINDS = {"averaged": "", "measured": ", head"}
QUIET = "trigger"  # whose run by nobody is the one without an attack
Runs = Mapping[Case, Mapping[str, Any]]
Row = Mapping[str, Any]


def value(run: Mapping[str, Any], metric: str, kind: str = "averaged") -> float:
    """In percent: the mean over the looks of the second half."""
    looks = run[kind][metric]
    return 100 * mean(value for at, value in looks if at >= looks[-1][0] / 2)


def row(runs: Runs, plain: Case) -> Row:
    """What there is about a case, without revival and with it. `lost`: accuracy, against the run that nobody attacked."""
    cases = (plain, replace(plain, revived=True))
    found: dict[str, Any] = {
        "attack": plain.attack if plain.malicious else "nobody",
        "malicious": plain.malicious,
        "seed": plain.seed,
    }
    for metric in METRICS:
        for kind, name in KINDS.items():
            found[metric + name] = [value(runs[case], metric, kind) for case in cases]
    quiet = [runs.get(replace(case, attack=QUIET, malicious=0)) for case in cases]
    if all(quiet):
        accuracies = zip(quiet, found["accuracy"], strict=True)
        found["lost"] = [value(run, "accuracy") - under for run, under in accuracies if run]
    return found


def table(rows: list[Row]) -> str:
    columns = [metric + name for metric in METRICS for name in KINDS.values()] + ["lost"]
    lines = [
        f"| attack | malicious | seed | {' | '.join(columns)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(columns)}",
    ]
    for one in rows:
        values = " | ".join(" → ".join(f"{side:.1f}" for side in one.get(column, [])) for column in columns)
        lines.append(f"| {one['attack']} | {one['malicious']} | {one['seed']} | {values} |")
    return "\n".join(lines)


def read(results: Path) -> Runs:
    found = [json.loads(path.read_text()) for path in results.glob("*.json")]
    return {Case(**{field.name: run[field.name] for field in fields(Case)}): run for run in found}


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place, malicious, *seeds = Path(sys.argv[1]), *[int(number) for number in sys.argv[2:] or ["3"]]
    data, results = place / "data", place / "runs"
    if not (data / "test.npz").exists():
        fashion(data)
    (data / "scenario.toml").write_text(SCENARIO.read_text())
    results.mkdir(parents=True, exist_ok=True)
    whom = [(QUIET, 0), *((attack, malicious) for attack in ATTACKS)]
    for case in [
        Case(*one, revived, seed) for seed in seeds or [0] for one in whom for revived in (False, True)
    ]:
        path = results / f"{case.name}.json"
        if not path.exists():
            found = play(data, case)
            path.write_text(json.dumps(found))
            print(case.name, f"{found['cpu']:.0f} s", found.get("ends", {}), flush=True)
    runs, order = read(results), ["nobody", *ATTACKS]
    plain = [case for case in runs if not case.revived and replace(case, revived=True) in runs]
    rows = [row(runs, case) for case in plain]
    rows.sort(key=lambda one: (order.index(one["attack"]), one["malicious"], one["seed"]))
    draw(rows, place / "attacks.svg")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
