"""`python -m benchmarks.strategies DIR`: strategies compared on the data sets of ANABRANCH_DATA."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.strategies.data import fashion

HERE = Path(__file__).parent


def main() -> int:
    """Prepare DIR/fashion and compare the strategies there; what was finished before is not run again."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place = Path(sys.argv[1]) / "fashion"
    if not (place / "test.npz").exists():
        fashion(place)
    shutil.copytree(HERE / "fashion", place, dirs_exist_ok=True)
    program = Path(sys.executable).with_name("anabranch")
    done = [
        program,
        "compare",
        place / "compare.toml",
        "-o",
        Path(sys.argv[1]) / "fashion-compared",
        *sys.argv[2:],
    ]
    return subprocess.run([str(part) for part in done], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
