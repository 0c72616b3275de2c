"""index.html of a comparison."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from console.drawing import page
from console.simulation import parts, pictures
from console.simulation.pictures import Look
from simulator.comparison import words
from simulator.statistics import Points, band

Document = Mapping[str, Any]


def render(document: Document, curves: Mapping[str, Sequence[Points]]) -> str:
    """`document` is compare.json; `curves` are those of each entrant's final seeds."""
    metric, best = document["metric"], document["best"]
    finals = [value for one in document["entrants"] for value in one["final"] if value is not None]
    share = parts.is_share(metric, finals)
    title = f"{best} is ahead" if best else "No entrant came to an end"
    if best:
        mean = next(one["mean"]["mean"] for one in document["entrants"] if one["name"] == best)
        title = f"{best} is ahead with {parts.value(mean, share)}{_perhaps(document)}"
    body = f"""<header>
<p class="eyebrow">Anabranch comparison · {escape(document["job"])} · release {escape(document["release"])}</p>
<h1>{escape(title)}</h1>
<p class="lead">{_lead(document)}</p>
</header>
<section><h2>Results</h2>
{_results(document, share)}
<p class="note">{_how(document)}</p>
</section>
{_curves(document, curves, share)}
{_differences(document, share)}
{_tuning(document, share)}
<section><h2>What it was</h2>
{_differing(document)}
{parts.settings(document["scenario"], _common(document))}
</section>
<footer>compare.json has every figure of this page; runs.parquet, updates.parquet, versions.parquet and metrics.parquet
have every row of every run.</footer>"""
    return page(f"Anabranch: {document['job']} compared", body)


def _lead(document: Document) -> str:
    count, seeds = len(document["entrants"]), len(document["seeds"])
    tuned = (
        f", each tuned with at most {document['budget']} candidates on {len(document['tuning_seeds'])} others"
    )
    return (
        f"{count} entrants over {seeds} seeds{tuned if document['tuning_seeds'] else ''}, measured by "
        f"{escape(document['metric'])} on records no silo has."
    )


def _perhaps(document: Document) -> str:
    """Who may be as good: the interval of its difference to the best is not all on one side."""
    others = [
        one["name"]
        for one in document["entrants"]
        if (found := one["to_best"]) and (found["low"] is None or found["low"] <= 0 <= found["high"])
    ]
    return f", not told apart from {' and '.join(others)}" if others else ""


def _how(document: Document) -> str:
    target = ""
    if document["target"] is not None:
        target = (
            f" Time to target: virtual time until the mean of the last {document['looks']} looks is as good as "
            f"{document['target']:g}; in brackets, on how many seeds it was."
        )
    return (
        "The figure of a run is the mean of its looks in the last fifth of virtual time. Intervals have 95 % confidence, by"
        " Student’s t over seeds; differences are paired seed by seed, and p is not corrected for the number of"
        f" entrants.{target}"
    )


def _results(document: Document, share: bool) -> str:
    sign = -1 if document["mode"] == "max" else 1
    ranked = sorted(
        document["entrants"], key=lambda one: sign * one["mean"]["mean"] if one["mean"] else float("inf")
    )
    timed = document["target"] is not None
    rows = []
    for one in ranked:
        name = f'{escape(one["name"])}<span class="slow">{escape(words(one["chosen"]))}</span>'
        difference = one["to_best"]
        against = (
            ("–", "–", "–")
            if difference is None
            else (
                parts.signed(difference["mean"], share),
                parts.bounds(difference, share, sign=True),
                _p(difference["p"]),
            )
        )
        mean = f"<b>{_mean(one, share)}</b>" if one["name"] == document["best"] else _mean(one, share)
        rows.append(
            (name, mean, parts.bounds(one["mean"], share), *against, *(_reached(one) if timed else ()))
        )
    head = ["", escape(document["metric"]), "95 % interval", "to the best", "95 % interval", "p"]
    return parts.table([*head, *(["time to target"] if timed else [])], rows)


def _mean(one: Mapping[str, Any], share: bool) -> str:
    if one["mean"] is None:
        return f"left the numbers on {one['final'].count(None)} of {len(one['final'])} seeds"
    return parts.value(one["mean"]["mean"], share)


def _p(p: float | None) -> str:
    return "–" if p is None else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def _reached(one: Mapping[str, Any]) -> tuple[str]:
    known = [time for time in one["reached"] if time is not None]
    return (f"{parts.time(one['mean_reached'])} ({len(known)}/{len(one['reached'])})",)


def _curves(document: Document, curves: Mapping[str, Sequence[Points]], share: bool) -> str:
    bands = {name: band(found) for name, found in curves.items() if found}
    if not bands:
        return ""
    look = Look(document["metric"], share)
    picture = pictures.curves(bands, look, "curves", document["target"])
    return f"""<section><h2>How they learned</h2>
<figure>{picture}<figcaption>Mean over the final seeds, with 95 % confidence bands.</figcaption></figure></section>"""


def _differences(document: Document, share: bool) -> str:
    best = document["best"]
    others = [one for one in document["entrants"] if one["to_best"] is not None]
    if not others:
        return ""
    winner = next(one["final"] for one in document["entrants"] if one["name"] == best)
    rows = [
        {**one, "pairs": [a - b for a, b in zip(one["final"], winner, strict=True)]}
        for one in sorted(others, key=lambda one: -abs(one["to_best"]["mean"]), reverse=True)
    ]
    picture = pictures.differences(rows, best, share, "differences")
    return f"""<section><h2>Seed by seed</h2>
<figure>{picture}<figcaption>A dot is a seed, on which both met the same silos, records and delays; the diamond is their
mean, the bar its 95 % interval.</figcaption></figure></section>"""


def _tuning(document: Document, share: bool) -> str:
    pieces = []
    for one in document["entrants"]:
        if len(one["tried"]) < 2:
            continue
        rows = []
        for tried in one["tried"]:
            label = escape(words(tried["values"]))
            chosen = tried["values"] == one["chosen"]
            scores = [parts.value(score, share) for score in tried["final"]]
            mean = parts.value(tried["mean"], share)
            rows.append(
                (f"<b>{label}</b>" if chosen else label, f"<b>{mean}</b>" if chosen else mean, *scores)
            )
        head = ("", "mean", *(f"seed {seed}" for seed in document["tuning_seeds"]))
        drawn = f" of {one['combinations']}, drawn" if one["combinations"] > len(rows) else ""
        pieces.append(
            f"<details><summary>{escape(one['name'])}: {len(rows)} candidates{drawn}</summary>"
            f"{parts.table(head, rows)}</details>"
        )
    if not pieces:
        return ""
    return f"""<section><h2>Tuning</h2>
<p>Every candidate ran on the tuning seeds, measured on validation records; the one with the best mean went on. No figure
above is of a run that was tuned on.</p>{"".join(pieces)}</section>"""


def _differing(document: Document) -> str:
    """A row for each term in which entrants differ."""
    files = [dict(parts.leaves(one["file"])) for one in document["entrants"]]
    keys = list(dict.fromkeys(key for file in files for key in file))
    rows = [
        (escape(key), *(escape(parts.plain(file[key])) if key in file else parts.DASH for file in files))
        for key in keys
        if len({str(file.get(key)) for file in files}) > 1
    ]
    if not rows:
        return ""
    head = ("", *(escape(one["name"]) for one in document["entrants"]))
    return f"<h3>Terms in which entrants differ</h3>{parts.table(head, rows)}"


def _common(document: Document) -> dict[str, Any]:
    """The terms that all entrants have."""
    first, *others = (one["file"] for one in document["entrants"])
    return _shared(first, others)


def _shared(one: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for key, value in one.items():
        rest = [other.get(key) for other in others]
        if isinstance(value, Mapping):
            found[key] = _shared(value, [other for other in rest if isinstance(other, Mapping)])
        elif all(other == value for other in rest):
            found[key] = value
    return found
