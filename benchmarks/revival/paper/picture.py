"""One picture of the comparison: accuracy over virtual time, mean of the seeds and their range."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from simulator import reading

COLOURS = {
    "fedrevive": "#b04030",
    "afl-dw": "#d9a441",
    "fedbuff-as-fast": "#2f6f8f",
    "fedbuff": "#7fb3a6",
    "fedavg": "#777777",
}


def draw(compared: Path, path: Path) -> None:
    """`compared`: what `anabranch compare` left."""
    document = json.loads((compared / "compare.json").read_text())
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for entrant in document["entrants"]:
        runs = [reading.played(reading.load(compared / "runs" / key)) for key in entrant["runs"]]
        curves = [reading.curve(run, document["job"], document["metric"]) for run in runs]
        times, table = curves[0].times, 100 * np.stack([curve.values for curve in curves])
        colour = COLOURS[entrant["name"]]
        axes.plot(times, table.mean(axis=0), color=colour, label=entrant["name"])
        axes.fill_between(times, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("virtual time (FedRevive's default schedule ends at 200)")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
