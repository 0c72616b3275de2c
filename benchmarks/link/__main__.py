"""`python -m benchmarks.link DIR`: accuracy against bytes of LoRA on 20 Newsgroups (of ANABRANCH_DATA), in virtual time.

A page in DIR/compared, a table on standard output and in DIR/link.json, the picture in DIR/link.svg. What was finished
before is not run again.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.link import data
from benchmarks.link.picture import draw
from simulator import reading

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """Of one way to travel. Means over seeds."""

    name: str
    accuracy: tuple[float, ...]  # of the head, over the last fifth of the run; for each seed
    down: float  # bytes on the wire of one run: versions
    up: float  # updates
    file: int  # bytes of a whole update


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    prepare(out)
    program = Path(sys.executable).with_name("anabranch")
    subprocess.run([program, "compare", out / "compare.toml", "-o", out / "compared"], check=True)
    rows = read(out / "compared")
    print(table(rows))
    (out / "link.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    draw(rows, out / "link.svg")
    return 0


def prepare(out: Path) -> None:
    """Records, job, scenario and comparison in one folder."""
    if not (out / "test.npz").exists():
        data.newsgroups(out)
    shutil.copytree(HERE / "job", out / "job", dirs_exist_ok=True)
    shutil.copy(HERE / "compare.toml", out / "compare.toml")
    scenario = (HERE / "scenario.toml").read_text()
    (out / "scenario.toml").write_text(f'{scenario}\n[models.minilm]\npath = "{data.encoder()}"\n')


def read(folder: Path) -> list[Row]:
    document = json.loads((folder / "compare.json").read_text())
    rows = []
    for entrant in document["entrants"]:
        runs = [reading.played(reading.load(folder / "runs" / key)) for key in entrant["runs"]]
        jobs = [run.document["jobs"][0] for run in runs]
        rows.append(
            Row(
                entrant["name"],
                tuple(job["final"][document["metric"]] for job in jobs),
                fmean(job["bytes_down"] for job in jobs),
                fmean(job["bytes_up"] for job in jobs),
                jobs[0]["file_bytes"],
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """Markdown. The first row is what the others are held against."""
    whole = rows[0].down + rows[0].up
    lines = [
        "| | accuracy | down, MB | up, MB | fewer bytes than the first |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        moved = row.down + row.up
        sizes = f"{row.down / 1e6:.2f} | {row.up / 1e6:.2f} | {whole / moved:.1f} ×"
        lines.append(f"| {row.name} | {fmean(row.accuracy):.1%} | {sizes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
