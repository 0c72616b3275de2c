"""`python -m benchmarks.revival.paper DIR`: FedRevive as published beside what it was compared with, on Fashion-MNIST.

The page is DIR/compared/index.html, figures are in DIR/compared/compare.json. What was finished before is not run again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.strategies.data import fashion

HERE = Path(__file__).parent
RECORDS = 35_000  # about 350 for each of a hundred silos


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place = Path(sys.argv[1])
    if not (place / "silos.npz").exists():
        fashion(place)
        with np.load(place / "train.npz") as whole:
            np.savez(place / "silos.npz", x=whole["x"][:RECORDS], y=whole["y"][:RECORDS])
    for name in ("scenario.toml", "compare.toml"):
        shutil.copy(HERE / name, place / name)
    shutil.copytree(HERE / "job", place / "job", dirs_exist_ok=True)
    program = Path(sys.executable).with_name("anabranch")
    command = [program, "compare", place / "compare.toml", "-o", place / "compared", *sys.argv[2:]]
    return subprocess.run([str(part) for part in command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
