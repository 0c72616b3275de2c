"""The report's pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from console.demo.history import History
from console.drawing import ACCENT, BAND, INK, LINE, LOCAL, MUTED, PAPER, PERCENT, STYLE, WARN, percent, svg

RAMP = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04")  # staleness, by RAMP_TOPS
RAMP_TOPS = (0, 2, 5)
RAMP_WORDS = ("0", "1–2", "3–5", "6 or more")
SPEEDS = ("#0b0b01", "#0b0b02", "#0b0b03")
SERIES = ("#0c0c01", "#0c0c02")  # entrants beside the one the report is about
_COLOURS = {
    **{colour: f"--stale-{n}" for n, colour in enumerate(RAMP)},
    **{colour: f"--speed-{n}" for n, colour in enumerate(SPEEDS)},
    **{colour: f"--series-{n}" for n, colour in enumerate(SERIES, 1)},
}


def river(history: History, report: Mapping[str, Any]) -> str:
    """Accuracy of every version over time; below, one lane per silo with every update from lease to receipt."""
    lanes = [silo["silo"] for silo in report["silos"]]
    with mpl.rc_context({**STYLE, "svg.hashsalt": "river"}):
        figure = Figure(figsize=(10.4, 3.1 + 0.42 * len(lanes)))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 0.42 * len(lanes) + 0.2))
        _curve(top, report)
        _lanes(bottom, history, lanes)
        last = max([history.ended, *(update.received for update in history.updates)])
        end = max(last - history.started, 1e-3)
        bottom.set_xlim(-0.01 * end, 1.005 * end)
        bottom.set_xlabel("seconds since the job started")
        for axes in (top, bottom):
            _shade_outage(axes, report["server_killed"], label=axes is top)
        figure.subplots_adjust(left=0.085, right=0.985, top=0.97, bottom=0.115, hspace=0.07)
        return svg(figure, "river", "Accuracy over time, with every silo's updates", _COLOURS)


def _curve(axes: Axes, report: Mapping[str, Any]) -> None:
    points = report["accuracy_by_version"]
    times = [max(0.0, point["seconds"]) for point in points]  # version 0 is older than the job's start
    averaged = report["model"]["selector"] == "ema"
    head = RAMP[0] if averaged else ACCENT
    style: Any = {"marker": "o", "markersize": 2.6, "linewidth": 1.1, "color": head}
    axes.plot(times, [point["accuracy_all"] for point in points], label="each version as published", **style)
    if averaged:
        pairs = [(t, p["ema_accuracy_all"]) for t, p in zip(times, points, strict=True)]
        kept = [pair for pair in pairs if pair[1] is not None]
        label = f"running average of versions, {percent(report['model']['accuracy_all'])} at the end"
        axes.plot(*zip(*kept, strict=True), color=ACCENT, linewidth=2.4, solid_capstyle="round", label=label)
    best = report["model"]["best_local_accuracy_all"]
    alone = f"best silo on its own, {percent(best)}"
    axes.axhline(best, color=LOCAL, linewidth=1.3, linestyle=(0, (5, 3)), label=alone)
    axes.legend(
        loc="lower right", frameon=False, labelcolor=INK, fontsize=10, reverse=True, borderaxespad=0.6
    )
    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _lanes(axes: Axes, history: History, lanes: Sequence[str]) -> None:
    for row, silo in enumerate(lanes):
        axes.axhline(row, color=LINE, linewidth=0.6, zorder=0)
        for update in history.of(silo):
            end = update.received - history.started
            start = (update.leased or update.received) - history.started
            colour = _staleness_colour(update.staleness) if update.fate == "merged" else PAPER
            edge = WARN if update.fate == "refused" else MUTED if update.fate != "merged" else PAPER
            width = max(end - start, 0.002 * (history.ended - history.started))
            axes.add_patch(
                Rectangle((start, row - 0.31), width, 0.62, facecolor=colour, edgecolor=edge, linewidth=0.6)
            )
        for refusal in history.refusals:
            if refusal.silo == silo:
                axes.plot(refusal.time - history.started, row, marker="x", color=WARN, markersize=6, zorder=3)
    axes.set_ylim(len(lanes) - 0.45, -0.55)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _shade_outage(axes: Axes, killed: Mapping[str, Any] | None, *, label: bool) -> None:
    if killed is None:
        return
    start, length = killed["seconds"], killed["seconds_until_ready"]
    axes.axvspan(start, start + length, color=BAND, linewidth=0, zorder=-1)
    axes.axvline(start, color=WARN, linewidth=1)
    if label:
        axes.annotate(
            "server killed", (start, 0), xycoords=("data", "axes fraction"), xytext=(-5, 6), ha="right",
            textcoords="offset points", color=WARN, fontsize=10,
        )  # fmt: skip


def race(told: Mapping[str, Any]) -> str:
    """Every entrant's versions over the seconds of its own job: as published, and their running average."""
    *beside, last = told["entrants"]
    with mpl.rc_context({**STYLE, "svg.hashsalt": "race"}):
        figure = Figure(figsize=(10.4, 3.4))
        axes = figure.subplots()
        for one, colour in zip((*beside, last), (*SERIES, ACCENT), strict=True):
            heads = [(point["seconds"], point["accuracy_all"]) for point in one["curve"]]
            averages = [
                (p["seconds"], p["ema_accuracy_all"])
                for p in one["curve"]
                if p["ema_accuracy_all"] is not None
            ]
            label = f"{one['name']}, {percent(one['accuracy_all'])}"
            axes.plot(*zip(*heads, strict=True), color=colour, linewidth=1, alpha=0.45 if averages else 1)
            axes.plot(*zip(*(averages or heads), strict=True), color=colour, linewidth=2.2, label=label)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_xlabel("seconds since the job started")
        axes.legend(loc="lower right", frameon=False, labelcolor=INK, fontsize=10, reverse=True)
        figure.subplots_adjust(left=0.085, right=0.985, top=0.97, bottom=0.15)
        return svg(figure, "race", "Accuracy over time of every strategy", _COLOURS)


def staleness(history: History, report: Mapping[str, Any]) -> str:
    """How many versions had passed when an update was merged, stacked by the speed of its silo."""
    speeds = sorted({silo["slowness"] for silo in report["silos"]})
    groups = [
        [u.staleness or 0 for s in report["silos"] if s["slowness"] == speed for u in history.of(s["silo"])
         if u.fate == "merged"]
        for speed in speeds
    ]  # fmt: skip
    last = max((value for group in groups for value in group), default=0)
    width = max(1, -(-(last + 1) // 30))
    edges = [edge - 0.5 for edge in range(0, last + width + 1, width)]
    colours = [SPEEDS[min(n, len(SPEEDS) - 1)] for n in range(len(speeds))]
    with mpl.rc_context({**STYLE, "svg.hashsalt": "staleness"}):
        figure = Figure(figsize=(5.1, 2.9))
        axes = figure.subplots()
        axes.hist(
            groups,
            bins=edges,
            stacked=True,
            color=colours,
            rwidth=0.86,
            label=[speed_word(s) for s in speeds],
        )
        axes.set_xlabel("versions published between lease and merge")
        axes.set_ylabel("updates")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.tick_params(length=0)
        axes.legend(frameon=False, labelcolor=INK, handlelength=0.9, handleheight=0.9)
        figure.subplots_adjust(left=0.115, right=0.985, top=0.97, bottom=0.19)
        return svg(figure, "staleness", "Histogram of the staleness of merged updates", _COLOURS)


def bars(report: Mapping[str, Any]) -> str:
    """Local-only against federated for every silo: on its own held-out records, and on everybody's."""
    silos = report["silos"]
    with mpl.rc_context({**STYLE, "svg.hashsalt": "bars"}):
        figure = Figure(figsize=(10.4, 0.75 + 0.52 * len(silos)))
        pair = figure.subplots(1, 2, sharey=True)
        for axes, key, title in zip(
            pair, ("own", "all"), ("its own held-out records", "all silos’ held-out records"), strict=True
        ):
            _bars(axes, silos, key)
            axes.set_title(f"on {title}", loc="left", color=INK, fontsize=11, fontweight="bold")
        pair[0].set_yticks(range(len(silos)), [silo["silo"] for silo in silos])
        pair[0].set_ylim(len(silos) - 0.4, -0.6)
        height = 0.75 + 0.52 * len(silos)
        figure.subplots_adjust(
            left=0.085, right=0.985, top=1 - 0.35 / height, bottom=0.12 / height, wspace=0.06
        )
        return svg(figure, "bars", "Accuracy of local-only and federated models per silo", _COLOURS)


def _bars(axes: Axes, silos: Sequence[Mapping[str, Any]], key: str) -> None:
    for row, silo in enumerate(silos):
        for offset, who, colour in ((-0.19, "local", LOCAL), (0.19, "federated", ACCENT)):
            value = silo[who][key]
            axes.barh(row + offset, value, height=0.34, color=colour)
            axes.annotate(
                percent(value), (value, row + offset), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=9.5, color=INK if value == max(silo["local"][key], silo["federated"][key]) else MUTED,
            )  # fmt: skip
    axes.set_xlim(0, 1.14)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


def speed_word(slowness: float) -> str:
    """`usual speed`, `3× slower`."""
    return "usual speed" if slowness == 1 else f"{slowness:g}× slower"


def _staleness_colour(value: int | None) -> str:
    return RAMP[sum((value or 0) > top for top in RAMP_TOPS)]
