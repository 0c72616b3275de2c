"""One picture of the attacks: how far each got, without revival and with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIDES = {"without revival": "#7fb3a6", "with it": "#2f6f8f"}
MEASURES = {
    "accuracy": "accuracy, %",
    "turned": "turned by the patch, %",
    "fooled": "taken for the\nwanted name, %",
}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Means over the seeds of each attack."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for one in rows:
        groups.setdefault((one["attack"], one["malicious"]), []).append(one)
    figure = Figure(figsize=(max(7.2, 0.65 * len(groups)), 6), layout="constrained")
    axes = figure.subplots(len(MEASURES), 1, sharex=True)
    for where, (metric, label) in zip(axes, MEASURES.items(), strict=True):
        _bars(where, [[one[metric] for one in group] for group in groups.values()])
        where.set_ylabel(label, fontsize=8)
    names = [f"{attack}\n{malicious} of 10" if malicious else "nobody" for attack, malicious in groups]
    axes[-1].set_xticks(range(len(names)), names, fontsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def _bars(where: Axes, groups: Sequence[Sequence[Sequence[float]]]) -> None:
    """`groups`: of each attack, for each seed the value of either side."""
    for side, (label, colour) in enumerate(SIDES.items()):
        heights = [mean(values[side] for values in group) for group in groups]
        at = [number + 0.38 * (side - 0.5) for number in range(len(groups))]
        where.bar(at, heights, 0.36, color=colour, label=label)
    for edge in ("top", "right"):
        where.spines[edge].set_visible(False)
