"""Pictures of runs in virtual time, and of comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from console.drawing import ACCENT, INK, LINE, LOCAL, MUTED, PERCENT, STYLE, svg
from simulator.statistics import Band, Points

SERIES = tuple(f"#0c0c0{n}" for n in range(1, 9))
DASHES: Any = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))  # of the ninth curve and so on
_COLOURS = {colour: f"--series-{n}" for n, colour in enumerate(SERIES)}
_UNITS = (("days", 86400.0, 4 * 86400.0), ("hours", 3600.0, 3 * 3600.0), ("minutes", 60.0, 600.0))
BINS = 40
WIDTH = 10.4


@dataclass(frozen=True)
class Look:
    """How a metric is drawn."""

    metric: str
    share: bool  # between 0 and 1, drawn in per cent


def style(number: int) -> tuple[str, Any]:
    """Colour and dashes of a curve."""
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def curves(bands: Mapping[str, Band], look: Look, name: str, target: float | None = None) -> str:
    """Means over virtual time with their confidence bands, one for each name."""
    with _figure(4.3, name) as figure:
        axes = figure.subplots()
        for number, (label, band) in enumerate(bands.items()):
            colour, dashes = style(number)
            _band(axes, band, _unit(bands.values())[1], colour, dashes, label)
        if target is not None:
            axes.axhline(target, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.annotate(
                "target", (0.002, target), xycoords=("axes fraction", "data"), xytext=(0, 3), color=MUTED,
                textcoords="offset points", fontsize=9.5,
            )  # fmt: skip
        _axes(axes, look, _unit(bands.values())[0])
        axes.legend(loc="lower right" if look.share else "upper right", frameon=False, labelcolor=INK)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.97, bottom=0.13)
        return svg(figure, name, f"{look.metric} over virtual time", _COLOURS)


def silos(found: Mapping[str, Points], groups: Mapping[str, str], look: Look, name: str) -> str:
    """One thin curve for each silo, in the colour of its group."""
    kinds = list(dict.fromkeys(groups.values()))
    unit, length = _unit(found.values())
    with _figure(3.6, name) as figure:
        axes = figure.subplots()
        shown: set[str] = set()
        for silo, points in found.items():
            group = groups[silo]
            colour, dashes = style(kinds.index(group))
            label = None if group in shown else group
            shown.add(group)
            axes.plot(
                points.times / length, points.values, color=colour, linestyle=dashes, linewidth=0.9,
                alpha=0.75, label=label,
            )  # fmt: skip
        _axes(axes, look, unit)
        axes.legend(loc="lower right" if look.share else "upper right", frameon=False, labelcolor=INK)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.97, bottom=0.155)
        return svg(figure, name, f"{look.metric} on each silo's records", _COLOURS)


def staleness(groups: Mapping[str, Sequence[int]], name: str) -> str:
    """How late merged updates were, a histogram for each group, each as high as its largest bar."""
    last = max((max(values) for values in groups.values() if values), default=0)
    width = max(1, -(-(last + 1) // BINS))
    edges = np.arange(0, last + width + 1, width) - 0.5
    with _figure(0.75 + 0.62 * len(groups), name) as figure:
        rows = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        for number, (axes, (label, values)) in enumerate(zip(rows, groups.items(), strict=True)):
            counts, _ = np.histogram(values, edges)
            places = edges[:-1] + width / 2
            axes.bar(places, counts / max(1, counts.max()), width=0.86 * width, color=style(number)[0])
            middle = f"median {np.median(values):g}" if values else "none merged"
            axes.set_ylabel(f"{label}\n{middle}", rotation=0, ha="right", va="center", color=INK, fontsize=10)
            axes.set_ylim(0, 1.08)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.tick_params(length=0)
        rows[-1].set_xlabel("versions published between lease and merge")
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        height = 0.75 + 0.62 * len(groups)
        figure.subplots_adjust(left=0.2, right=0.985, top=1 - 0.08 / height, bottom=0.52 / height, hspace=0.2)
        return svg(figure, name, "Staleness of merged updates by group of silos", _COLOURS)


def differences(rows: Sequence[Mapping[str, Any]], best: str, share: bool, name: str) -> str:
    """Of each entrant to the best: one dot a seed, the mean and its confidence interval. `rows` have `name`,
    `to_best` and `pairs`."""
    scale = 100 if share else 1
    height = 0.85 + 0.42 * len(rows)
    with _figure(height, name) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=LOCAL, linewidth=1)
        for place, row in enumerate(rows):
            found = row["to_best"]
            axes.plot(
                [scale * pair for pair in row["pairs"]], [place - 0.24] * len(row["pairs"]), linestyle="none",
                marker="o", markersize=4, color=LOCAL,
            )  # fmt: skip
            if found["low"] is not None:
                ends = [scale * found["low"], scale * found["high"]]
                axes.plot(ends, [place, place], color=ACCENT, linewidth=2.2, solid_capstyle="round")
            axes.plot([scale * found["mean"]], [place], marker="D", markersize=6, color=ACCENT)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"difference to {best}, seed by seed{', in points' if share else ''}")
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.spines["left"].set_visible(False)
        longest = max(len(row["name"]) for row in rows)
        figure.subplots_adjust(
            left=min(0.4, 0.02 + 0.0087 * longest), right=0.985, top=1 - 0.05 / height, bottom=0.56 / height
        )
        return svg(figure, name, f"Paired differences to {best}", _COLOURS)


@contextmanager
def _figure(height: float, name: str) -> Iterator[Figure]:
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        yield Figure(figsize=(WIDTH, height))


def _band(axes: Axes, band: Band, length: float, colour: str, dashes: Any, label: str) -> None:
    times = band.times / length
    axes.plot(times, band.mean, color=colour, linestyle=dashes, linewidth=1.8, label=label)
    if (band.high > band.low).any():
        axes.fill_between(times, band.low, band.high, color=colour, alpha=0.16, linewidth=0)


def _axes(axes: Axes, look: Look, unit: str) -> None:
    if look.share:
        axes.yaxis.set_major_formatter(PERCENT)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.01), min(high, 1.02))
    axes.set_ylabel(look.metric)
    axes.set_xlabel(f"{unit} of virtual time")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(x=0.01)


def _unit(found: Any) -> tuple[str, float]:
    """The unit of a time axis, and its length in seconds."""
    last = max((float(one.times[-1]) for one in found if len(one.times)), default=0.0)
    return next(((name, length) for name, length, least in _UNITS if last >= least), ("seconds", 1.0))
