"""`python -m benchmarks.revival DIR [NAME …]`: what revival is worth, on the data sets of ANABRANCH_DATA, in virtual time.

Every NAME is a comparison: fashion/compare-NAME.toml, or cifar/compare.toml; all of them unless some are named. Pages in
DIR/NAME, figures on standard output and in DIR/revival.json, the
picture in DIR/revival.svg. What was finished before is not run again.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.revival.picture import draw
from benchmarks.revival.table import Line, lines
from benchmarks.strategies import data

HERE = Path(__file__).parent
COMPARISONS = {
    "uneven": "fashion/compare.toml",
    "pairs": "fashion/compare-pairs.toml",
    "charged": "fashion/compare-charged.toml",
    "mild": "fashion/compare-mild.toml",
    "twenty": "fashion/compare-twenty.toml",
    "cifar": "cifar/compare.toml",
}
RECORDS = {"fashion": data.fashion, "cifar": data.colours}


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(COMPARISONS)
    found = {name: _played(out, name) for name in names}
    for name, rows in found.items():
        _tell(name, rows)
    draw(found, _costs(out / "cost.json"), out / "revival.svg")
    written: dict[str, Any] = {name: [row.document() for row in rows] for name, rows in found.items()}
    (out / "revival.json").write_text(json.dumps(written, indent=1) + "\n")
    return 0


def _played(out: Path, name: str) -> list[Line]:
    comparison = Path(COMPARISONS[name])
    place = out / comparison.parent
    if not (place / "test.npz").exists():
        RECORDS[place.name](place)
    for folder in (comparison.parent, Path("job")):
        shutil.copytree(HERE / folder, out / folder, dirs_exist_ok=True)
    program = Path(sys.executable).with_name("anabranch")
    subprocess.run([program, "compare", out / comparison, "-o", out / name], check=True)
    return lines(out / name)


def _costs(path: Path) -> dict[str, float]:
    """Of a server for each update, in jobs of a silo."""
    if not path.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.revival.cost", path], check=True)
    return {name: median(ratios) for name, ratios in json.loads(path.read_text()).items()}


def _tell(name: str, rows: list[Line]) -> None:
    print(
        f"\n{name}: accuracy over the last fifth, of the head and of its average; to {rows[0].name}, paired"
    )
    for row in rows:
        print(f"  {row}")


if __name__ == "__main__":
    sys.exit(main())
