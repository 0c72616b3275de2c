"""The report's section about revival: the ranking, and what it cost."""

from collections.abc import Mapping
from html import escape
from typing import Any

from console.demo.worth import cost
from console.drawing import percent


def section(report: Mapping[str, Any], race: str) -> str:
    told = report["revival"]
    ranked = sorted(told["entrants"], key=lambda one: one["accuracy_all"], reverse=True)
    rows = "".join(_row(one, ranked[0]["accuracy_all"]) for one in ranked)
    slow = [silo["silo"] for silo in report["silos"] if silo["slowness"] != 1]
    return f"""<section>
<h2>Was revival worth it?</h2>
<p>{_verdict(ranked)} Every strategy trained the same job from the same version 0, one after another, on the same silos.
No two of them hold a digit in common, so what {escape(" and ".join(slow)) or "a slow silo"} knows nobody else can teach.</p>
<figure>{race}<figcaption>Thin: each version as published. Thick: the running average of versions, where the job keeps
one; the figure is the model that the job delivers.</figcaption></figure>
<div class="scroll"><table><thead><tr><th>strategy</th><th>delivered</th><th>last fifth of its versions, mean</th>
<th>versions</th><th>updates</th><th>seconds</th></tr></thead><tbody>{rows}</tbody></table></div>
<p>{escape(cost(told["reviver"]))} It taught itself from {_teachers(told["reviver"]["teachers"])}.</p>
<p class="note">One seed, and nothing tuned on it: this shows how revival works, not how much it is worth elsewhere.</p>
</section>"""


def _verdict(ranked: list[Mapping[str, Any]]) -> str:
    place = next(n for n, one in enumerate(ranked) if one["name"] == "revive")
    if place == 0:
        ahead = 100 * (ranked[0]["accuracy_all"] - ranked[1]["accuracy_all"])
        return f"Here it was: {ahead:.1f} points more than {escape(ranked[1]['name'])}."
    behind = 100 * (ranked[0]["accuracy_all"] - ranked[place]["accuracy_all"])
    return f"Not here: {escape(ranked[0]['name'])} did better by {behind:.1f} points."


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
