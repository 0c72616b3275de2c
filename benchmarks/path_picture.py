"""One picture of the rounds: where the time of a round goes, ours beside the bare reference, pair by pair."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PHASES = {"broadcast": "#7fb3a6", "upload": "#2f6f8f", "aggregate": "#d9a441"}
SIDES = {"memory": "bare gRPC", "durable": "bare gRPC\n+ disk", "ours": "Anabranch"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Nothing is drawn when no rounds were measured."""
    found: Sequence[Mapping[str, Any]] = results.get("rounds", ())
    if not found:
        return
    figure = Figure(figsize=(3.6 * len(found), 4.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for one, where in zip(found, axes, strict=True):
        _rounds(where, one)
    axes[0].set_ylabel("× the bare durable round")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("A whole round: durable, verified, aggregated, logged", fontsize=12)
    figure.savefig(path)


def _rounds(axes: Axes, one: Mapping[str, Any]) -> None:
    pairs = one["pairs"]
    unit = median(sum(pair["durable"][phase] for phase in PHASES) for pair in pairs)
    for place, side in enumerate(SIDES):
        base = 0.0
        for phase, colour in PHASES.items():
            height = median(pair[side][phase] for pair in pairs) / unit
            axes.bar(place, height, 0.62, base, color=colour, label=phase if place == 0 else None)
            base += height
        dots = [sum(pair[side][phase] for phase in PHASES) / unit for pair in pairs]
        axes.plot([place] * len(dots), dots, "o", color="#222222", markersize=3, alpha=0.6)
    axes.axhline(1.6, color="#b04030", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(SIDES)), list(SIDES.values()))
    axes.set_title(f"{one['model_bytes'] / 1e6:g} MB, {one['silos']} silos", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
