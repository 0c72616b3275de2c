"""The report's section about revival: the ranking, and what it cost."""

from collections.abc import Mapping
from html import escape
from typing import Any

from console.demo.settings import REVIVED
from console.demo.worth import cost
from console.drawing import percent


def section(report: Mapping[str, Any], race: str) -> str:
    told, reviver = report["revival"], report["revival"]["reviver"]
    ranked = sorted(told["entrants"], key=lambda one: one["accuracy_all"], reverse=True)
    rows = "".join(_row(one, ranked[0]["accuracy_all"]) for one in ranked)
    taught = f" Its teachers: {_teachers(reviver['teachers'])}." if reviver["used"] else ""
    return f"""<section>
<h2>Was revival worth it?</h2>
<p>{_verdict(ranked, reviver["used"])} Every strategy trained the same job from the same version 0, one after another, on the
same silos. They were dealt apart: what a slow silo knows of its digits, no faster one can teach.</p>
<figure>{race}<figcaption>Thin: each version as published. Thick: the running average of versions, where the job keeps
one; the figure is the model that the job delivers.</figcaption></figure>
<div class="scroll"><table><thead><tr><th>strategy</th><th>delivered</th><th>last fifth of<br>its versions, mean</th>
<th>versions</th><th>updates</th><th>seconds</th></tr></thead><tbody>{rows}</tbody></table></div>
<p>{escape(cost(reviver))}{taught}</p>
<p class="note">One run of each: run again, updates arrive in another order and the figures are others. Nothing was tuned on
this seed. It shows how revival works, not how much it is worth elsewhere.</p>
</section>"""


def _verdict(ranked: list[Mapping[str, Any]], used: int) -> str:
    if not used:
        return f"It had no part in this run: nothing that the reviver made was used, so its row is another run of {REVIVED}."
    score = {one["name"]: one["accuracy_all"] for one in ranked}
    without = f"{_points(score['revive'] - score[REVIVED])} beside {REVIVED}, the same job without a reviver"
    best = ranked[0]["name"]
    if best == "revive":
        return f"Here it was: {without}."
    if best == REVIVED:
        return f"Not here: {without}."
    return f"Not here: {best} did best. Revival is {_points(score['revive'] - score[best])} to it, {without}."


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}\u00a0points".replace("-", "−")


def _row(one: Mapping[str, Any], best: float) -> str:
    delivered = percent(one["accuracy_all"])
    if one["accuracy_all"] == best:
        delivered = f"<b>{delivered}</b>"
    return (
        f"<tr><td>{escape(one['name'])}</td><td>{delivered}</td><td>{percent(one['last_fifth_all'])}</td>"
        f"<td>{one['versions']}</td><td>{one['updates']}</td><td>{one['seconds']:.0f}</td></tr>"
    )


def _teachers(taught: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(silo)} ({count} times)" for silo, count in taught.items())
