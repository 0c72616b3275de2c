"""`python -m benchmarks.revival.text DIR`: what revival is worth for texts and LoRA: questions of TREC (ANABRANCH_DATA).

First one distillation by itself, in one process: made texts beside random tokens and beside other questions. Then
`compare.toml`, in virtual time: a page in DIR/compared, a table on standard output. Finished runs are not made again.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.revival.table import lines
from benchmarks.revival.text import once
from benchmarks.revival.text.prepare import prepare


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    prepare(out)
    once.tell(out)
    program = Path(sys.executable).with_name("anabranch")
    command = [program, "compare", out / "compare.toml", "-o", out / "compared", "--processes", "1"]
    subprocess.run(command, check=True)
    for row in lines(out / "compared"):
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
