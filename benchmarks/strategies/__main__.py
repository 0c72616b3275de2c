"""`python -m benchmarks.strategies DIR`: strategies compared on the data sets of ANABRANCH_DATA."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.strategies.data import fashion

HERE = Path(__file__).parent


def main() -> int:
    """Prepare DIR/fashion and make each comparison there; what was finished before is not run again."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    place = Path(sys.argv[1]) / "fashion"
    if not (place / "test.npz").exists():
        fashion(place)
    shutil.copytree(HERE / "fashion", place, dirs_exist_ok=True)
    program = Path(sys.executable).with_name("anabranch")
    for comparison in sorted((HERE / "fashion").glob("compare*.toml")):
        out = Path(sys.argv[1]) / comparison.stem.replace("compare", "fashion-compared")
        command = [program, "compare", place / comparison.name, "-o", out, *sys.argv[2:]]
        code = subprocess.run([str(part) for part in command], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
