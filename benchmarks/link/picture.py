"""One picture: accuracy against what had crossed the wire by then, and where runs ended; small points are other seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.link.__main__ import Row

SPARSE, WHOLE = "#b04030", "#2f6f8f"
LEAST = 1e5  # bytes; a logarithm has no place for the first look


def draw(rows: Sequence["Row"], path: Path) -> None:
    """In red what has a density below 1; in blue what travels whole."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(sorted(rows, key=lambda row: row.moved)):
        colour = SPARSE if sparse(row.name) else WHOLE
        seen = [(moved / 1e6, 100 * value) for moved, value in row.curves[0] if moved > LEAST]
        axes.plot(*zip(*seen, strict=True), color=colour, alpha=0.25, linewidth=1)
        end = (row.moved / 1e6, 100 * row.accuracy[0])
        axes.plot(*end, "o", color=colour, markersize=5)
        for other in row.accuracy[1:]:
            axes.plot(end[0], 100 * other, "o", color=colour, markersize=3, alpha=0.5)
        near = (5, 5) if number % 2 else (5, -11)  # so that neighbours do not cover each other
        axes.annotate(row.name, end, xytext=near, textcoords="offset points", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlabel("bytes on the wire so far, both ways, MB")
    axes.set_ylabel("test accuracy, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)


def sparse(name: str) -> bool:
    """By its name, which tells its densities."""
    return "16th" in name or "64th" in name
