"""`python -m benchmarks.link DIR`: accuracy against bytes of LoRA on 20 Newsgroups (of ANABRANCH_DATA), in virtual time.

A page of each comparison in DIR/NAME, a table on standard output and in DIR/link.json, the picture in DIR/link.svg. What
was finished before is not run again.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.link import data
from benchmarks.link.picture import draw
from simulator import reading

HERE = Path(__file__).parent
COMPARISONS = ("compared", "again", "pruned", "loco")
RIVALS = ("dense-bf16", "dense-int8")  # what saves bytes without a choice of entries


@dataclass(frozen=True)
class Row:
    """Of one way to travel; one value for each seed."""

    name: str
    accuracy: tuple[float, ...]  # of the head, over the last fifth of the run
    down: tuple[int, ...]  # bytes on the wire of one run: versions
    up: tuple[int, ...]  # updates
    curves: tuple[tuple[tuple[float, float], ...], ...]  # (bytes that had crossed the wire, accuracy then)

    @property
    def moved(self) -> float:
        """Bytes of a run, both ways."""
        return fmean(self.down) + fmean(self.up)

    def at(self, moved: float) -> float:
        """Accuracy on the first seed when so many bytes had crossed the wire; between two looks, on a line."""
        return float(np.interp(moved, *zip(*self.curves[0], strict=True)))


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    prepare(out)
    program = Path(sys.executable).with_name("anabranch")
    for name in COMPARISONS:
        subprocess.run([program, "compare", out / f"{name}.toml", "-o", out / name], check=True)
    rows = together([row for name in COMPARISONS for row in read(out / name)])
    print(table(rows))
    (out / "link.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    draw(rows, out / "link.svg")
    return 0


def prepare(out: Path) -> None:
    """Records, jobs, scenario and comparisons in one folder."""
    if not (out / "test.npz").exists():
        data.newsgroups(out)
    shutil.copytree(HERE / "job", out / "job", dirs_exist_ok=True)
    for name in COMPARISONS:
        shutil.copy(HERE / f"{name}.toml", out / f"{name}.toml")
    scenario = (HERE / "scenario.toml").read_text()
    (out / "scenario.toml").write_text(f'{scenario}\n[models.minilm]\npath = "{data.encoder()}"\n')


def read(folder: Path) -> list[Row]:
    document = json.loads((folder / "compare.json").read_text())
    metric = document["metric"]
    rows = []
    for entrant in document["entrants"]:
        runs = [reading.played(reading.load(folder / "runs" / key)) for key in entrant["runs"]]
        jobs = [run.document["jobs"][0] for run in runs]
        rows.append(
            Row(
                entrant["name"],
                tuple(job["final"][metric] for job in jobs),
                tuple(job["bytes_down"] for job in jobs),
                tuple(job["bytes_up"] for job in jobs),
                tuple(against_bytes(run, job["job"], metric) for run, job in zip(runs, jobs, strict=True)),
            )
        )
    return rows


def together(rows: list[Row]) -> list[Row]:
    """Rows of one name as one."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.setdefault(row.name, row)
        if known is not row:
            parts = (getattr(known, part.name) + getattr(row, part.name) for part in fields(Row)[1:])
            found[row.name] = Row(row.name, *parts)
    return list(found.values())


def against_bytes(run: reading.Played, job: str, metric: str) -> tuple[tuple[float, float], ...]:
    """Looks at the head, each with what updates that were in by then had moved, their bases included."""
    order = np.argsort(run.updates["received_at"])
    times = np.array(run.updates["received_at"])[order]
    moved = np.cumsum((np.array(run.updates["bytes_down"]) + np.array(run.updates["bytes_up"]))[order])
    looks = reading.curve(run, job, metric)
    before = np.searchsorted(times, looks.times, side="right")
    return tuple(zip((np.append(0, moved)[before]).tolist(), looks.values.tolist(), strict=True))


def table(rows: list[Row]) -> str:
    """Markdown. The first row is what the others are held against; rivals are looked up on their first seed."""
    rivals = [row for row in rows if row.name in RIVALS]
    lines = [
        "| | accuracy, seed 0 | mean of seeds | down, MB | up, MB | fewer bytes than the first |"
        + "".join(f" {row.name} at as many bytes |" for row in rivals),
        "| --- |" + " ---: |" * (5 + len(rivals)),
    ]
    for row in rows:
        sizes = f"{fmean(row.down) / 1e6:.2f} | {fmean(row.up) / 1e6:.2f} | {rows[0].moved / row.moved:.1f} ×"
        mean = f"{fmean(row.accuracy):.1%} of {len(row.accuracy)}" if len(row.accuracy) > 1 else ""
        cells = [f"{rival.at(row.moved):.1%}" if row.moved < rival.moved else "" for rival in rivals]
        lines.append(f"| {row.name} | {row.accuracy[0]:.1%} | {mean} | {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
