"""What revival was worth: the same job on the same silos with and without it, and what it cost.

Everything comes from the exported log and the exported models. Nothing is chosen: each entrant is judged by the model
it delivers, and by the mean over the last fifth of its versions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from console.demo.history import History


@dataclass(frozen=True)
class Entrant:
    """A job that has run, and the accuracies of its versions."""

    name: str
    history: History
    measured: Mapping[str, Any]


def build(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """The document's `revival`; the last entrant is the one with a reviver."""
    return {"entrants": [_entrant(one) for one in entrants], "reviver": _reviver(entrants[-1].history)}


def _entrant(one: Entrant) -> dict[str, Any]:
    history, measured = one.history, one.measured
    curve = [
        {
            "version": version.number,
            "seconds": round(max(0.0, version.time - history.started), 3),
            "accuracy_all": measured["versions"][str(version.number)],
            "ema_accuracy_all": measured["averages"].get(str(version.number)),
        }
        for version in history.versions
        if str(version.number) in measured["versions"]
    ]
    last = [point["accuracy_all"] for point in curve if point["version"] > 0.8 * history.head.number]
    end = curve[-1]
    return {
        "name": one.name,
        "job": history.job,
        "seconds": round(history.ended - history.started, 3),
        "versions": history.head.number,
        "updates": sum(update.fate == "merged" for update in history.updates),
        "accuracy_all": end["accuracy_all"] if end["ema_accuracy_all"] is None else end["ema_accuracy_all"],
        "last_fifth_all": fmean(last),
        "curve": curve,
    }


def _reviver(history: History) -> dict[str, Any]:
    made = [one.seconds for one in history.revivals if one.seconds is not None]
    used = [one for one in history.revivals if one.used is not None]
    tasks = [
        [u.received - u.leased for u in history.of(silo) if u.leased is not None] for silo in history.silos
    ]
    fastest = min((median(seconds) for seconds in tasks if seconds), default=0.0)
    taught = Counter(silo for one in used for silo in one.teachers)
    return {
        "tasks": len(history.revivals),
        "results": len(made),
        "used": len(used),
        "first_used": min((one.used for one in used if one.used is not None), default=None),
        "versions": history.head.number,
        "not_used": dict(sorted(Counter(one.reason for one in history.revivals if one.used is None).items())),
        "teachers": {silo: taught[silo] for silo in history.silos},
        "seconds": round(median(made), 4) if made else None,
        "fastest_task_seconds": round(fastest, 4),
    }


def lines(told: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    return [
        *(
            f"  {one['name']:<8} {one['accuracy_all']:6.1%} at the end, {one['last_fifth_all']:6.1%} over the last fifth,"
            f" {one['updates']} updates in {one['seconds']:.0f} s"
            for one in told["entrants"]
        ),
        "  " + cost(told["reviver"]),
    ]


def cost(reviver: Mapping[str, Any]) -> str:
    """One sentence or two."""
    missed = ", ".join(f"{count} {reason}" for reason, count in reviver["not_used"].items())
    rest = f" Tasks of which nothing was used: {missed}." if missed else ""
    if not reviver["used"]:
        return f"No result of the reviver was used.{rest}"
    seconds, task = reviver["seconds"], reviver["fastest_task_seconds"]
    return (
        f"The reviver's results are in {reviver['used']} of {reviver['versions']} versions, from version"
        f" {reviver['first_used']} on. One took {seconds:.2f} s, {seconds / task:.0%} of a task of the fastest silo.{rest}"
    )
