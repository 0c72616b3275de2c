"""One picture of the comparisons: the way up, what revival adds where, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.revival.table import Line

COLOURS = {
    "revive": "#b04030",
    "wide": "#d98070",
    "noise": "#d9a441",
    "ca2fl": "#2f6f8f",
    "fedbuff": "#7fb3a6",
    "fedasync": "#9a8ab5",
    "afl-dw": "#888888",
}
WORDS = {
    "uneven": "setting R",
    "pairs": "setting R,\nten seeds",
    "charged": "the reviver takes\n0.2 of a fast task",
    "mild": "Dirichlet(0.3)",
    "twenty": "20 silos",
    "cifar": "CIFAR-10",
}


def draw(found: Mapping[str, Sequence[Line]], costs: Mapping[str, float], path: Path) -> None:
    """`costs`: of a server for each update, in jobs of a silo; who is not in it costs nothing to speak of."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    curves, price, differences = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    rows = found.get("uneven") or next(iter(found.values()))
    _curves(curves, rows)
    _price(price, rows, costs)
    _differences(differences, found)
    for axes in (curves, price, differences):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _curves(axes: Axes, rows: Sequence[Line]) -> None:
    for row in rows:
        if row.name in COLOURS:
            axes.plot(row.curve.times, 100 * row.curve.values, color=COLOURS[row.name], label=row.name)
    axes.set_xlabel("virtual time, in tasks of a fast silo")
    axes.set_ylabel("test accuracy of the head, %, mean over seeds")
    axes.legend(frameon=False, loc="lower right")


def _price(axes: Axes, rows: Sequence[Line], costs: Mapping[str, float]) -> None:
    for row in rows:
        if row.name in COLOURS:
            cost, accuracy = costs.get(row.name, 0.0), 100 * row.mean.mean
            axes.plot(cost, accuracy, "o", color=COLOURS[row.name])
            axes.annotate(row.name, (cost, accuracy), (6, -3), textcoords="offset points", fontsize=9)
    axes.set_xlim(-0.05, 1.35)
    axes.set_xlabel("server work per update, in jobs of a silo")
    axes.set_ylabel("test accuracy of the head, %")


def _differences(axes: Axes, found: Mapping[str, Sequence[Line]]) -> None:
    """Each comparison: the first entrant less `ca2fl`, which shares its base, with the 95 % interval."""
    known = [name for name in found if any(row.name == "ca2fl" for row in found[name])]
    for place, name in enumerate(known):
        row = next(row for row in found[name] if row.name == "ca2fl")
        for shift, colour, paired in (
            (-0.12, COLOURS["revive"], row.to_first),
            (0.12, "#555555", row.average_to_first),
        ):
            if paired is not None and paired.low is not None and paired.high is not None:
                mean = 100 * paired.mean
                error = [[mean - 100 * paired.low], [100 * paired.high - mean]]
                axes.errorbar(mean, place + shift, xerr=error, fmt="o", color=colour, capsize=3)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(known)), [WORDS[name] for name in known])
    axes.invert_yaxis()
    axes.set_xlabel("revive less ca2fl, points (red: head; grey: average)")
