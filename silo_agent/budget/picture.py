"""The balance as a picture: ε over the cycles of each data set, under its ceiling."""

from collections.abc import Sequence
from pathlib import Path

from anabranch.errors import Reason, Refused
from silo_agent.budget.accounting import spent
from silo_agent.budget.balance import Balance

POINTS = 200  # of a line; each is an accounting of its own


def draw(balances: Sequence[Balance], path: Path) -> None:
    """An SVG file, the same bytes for the same ledger. Raises Refused(NOT_FOUND) without matplotlib, OSError."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Refused(
            Reason.NOT_FOUND,
            "a picture needs matplotlib, which is not installed here: pip install matplotlib",
        ) from error
    with rc_context({"svg.hashsalt": "anabranch", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 2.6 * max(len(balances), 1)), layout="constrained")
        for number, balance in enumerate(balances):
            axes = figure.add_subplot(len(balances), 1, number + 1)
            cycles, levels = _line(balance)
            axes.step(cycles, levels, where="post", color="#1f5f8b")
            if balance.ceiling:
                axes.axhline(balance.ceiling.epsilon, color="#b3452c", linestyle="--")
                axes.annotate("ceiling", (0, balance.ceiling.epsilon), color="#b3452c", va="bottom")
            axes.set_title(balance.binding, loc="left")
            at = f" at δ = {balance.delta:g}" if balance.delta else ""
            axes.set_ylabel(f"ε{at}")
            axes.set_xlabel("cycles charged")
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _line(balance: Balance) -> tuple[list[int], list[float]]:
    total = len(balance.charges)
    cycles = sorted({round(total * point / POINTS) for point in range(POINTS + 1)})
    if not balance.delta:
        return [0], [0.0]
    events = [one.spend.event for one in balance.charges]
    return cycles, [spent(events[:count], balance.delta) for count in cycles]
