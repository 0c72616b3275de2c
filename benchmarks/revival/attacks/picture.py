"""One picture of the attacks: how far each got, without revival and with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIDES = {"plain": "#7fb3a6", "revived": "#2f6f8f"}
MEASURES = {"accuracy": "accuracy, %", "turned": "pictures that the patch turns, %"}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for where, (metric, label) in zip(axes, MEASURES.items(), strict=True):
        _bars(where, rows, metric)
        where.set_ylabel(label, fontsize=8)
    names = [f"{one['attack']}\n{one['malicious']} of 10" if one["malicious"] else "nobody" for one in rows]
    axes[-1].set_xticks(range(len(rows)), names, fontsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Malicious silos, without revival and with it", fontsize=12)
    figure.savefig(path)


def _bars(where: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    for place, (side, colour) in enumerate(SIDES.items()):
        heights = [one[f"{metric} {side}"] for one in rows]
        at = [number + 0.38 * (place - 0.5) for number in range(len(rows))]
        where.bar(at, heights, 0.36, color=colour, label=side)
    for side in ("top", "right"):
        where.spines[side].set_visible(False)
