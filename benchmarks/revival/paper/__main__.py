"""`python -m benchmarks.revival.paper DIR [NAME …]`: FedRevive as published beside what it was compared with.

NAME is clothes (Fashion-MNIST) or colours (CIFAR-10), of ANABRANCH_DATA; both unless said. A page and compare.json are in
DIR/NAME/compared, curves in DIR/NAME/curves.svg. What was finished before is not run again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.revival.paper.picture import draw
from benchmarks.strategies import data

HERE = Path(__file__).parent
MAKE = {"clothes": data.fashion, "colours": data.colours}
RECORDS = 35_000  # about 350 for each of a hundred silos


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    program = Path(sys.executable).with_name("anabranch")
    for name in sys.argv[2:] or list(MAKE):
        place = Path(sys.argv[1]) / name
        prepare(name, place)
        subprocess.run([program, "compare", place / "compare.toml", "-o", place / "compared"], check=True)
        draw(place / "compared", place / "curves.svg")
    return 0


def prepare(name: str, place: Path) -> None:
    """Records, job, scenario and comparison in one folder."""
    if not (place / "silos.npz").exists():
        MAKE[name](place)
        with np.load(place / "train.npz") as whole:
            np.savez(place / "silos.npz", x=whole["x"][:RECORDS], y=whole["y"][:RECORDS])
    (place / "job").mkdir(exist_ok=True)
    shutil.copy(HERE.parent / "job" / "task.py", place / "job" / "task.py")
    shutil.copy(HERE / f"{name}.toml", place / "job" / "job.toml")
    for file in ("scenario.toml", "compare.toml"):
        shutil.copy(HERE / file, place / file)


if __name__ == "__main__":
    sys.exit(main())
