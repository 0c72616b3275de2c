"""One picture: accuracy against what crossed the wire."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.link.__main__ import Row

SPARSE, WHOLE = "#b04030", "#2f6f8f"


def draw(rows: Sequence["Row"], path: Path) -> None:
    """Those whose name begins with a density are sparse."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        colour = SPARSE if row.name[0].isdigit() or row.name.startswith("quarter") else WHOLE
        moved = (row.down + row.up) / 1e6
        accuracy = [100 * value for value in row.accuracy]
        axes.plot([moved] * len(accuracy), accuracy, ".", color=colour, alpha=0.4)
        axes.plot(moved, fmean(accuracy), "o", color=colour)
        axes.annotate(
            row.name, (moved, fmean(accuracy)), xytext=(6, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlabel("bytes on the wire in both directions, MB")
    axes.set_ylabel("test accuracy, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
