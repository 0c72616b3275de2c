"""index.html of one run, or of several that differ by their seeds."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from console.drawing import page
from console.simulation import parts, pictures
from console.simulation.pictures import Look
from console.words import size
from simulator import reading
from simulator.reading import Given, Played
from simulator.statistics import Band, band, interval

MOST_ROWS = 40  # of silos, each by itself; beyond that, groups
KINDS = {"measured": "each version as published", "averaged": "the average beside it (EMA)"}
EVALUATED = "silos, by their own evaluation"


def render(runs: Sequence[Played]) -> str:
    """`runs` are of the same jobs and scenario. They are linked to from one page, and are a page each."""
    first = runs[0]
    names = [job["job"] for job in first.document["jobs"]]
    several = len(runs) > 1
    seeds = ", ".join(str(run.seed) for run in runs)
    which = f"seed {seeds}"
    if several:
        which = f"{len(runs)} runs with the seeds {seeds}. Bands are 95 % confidence intervals of the mean"
    title = f"{' and '.join(names)} in virtual time"
    body = f"""<header>
<p class="eyebrow">Anabranch simulation · release {escape(first.document["release"])}</p>
<h1>{escape(title)}</h1>
<p class="lead">{first.document["silos"]} silos, {parts.time(_longest(runs))} of virtual time, {which}.</p>
</header>
{"".join(_job(runs, name, number) for number, name in enumerate(names))}
<section><h2>What it was</h2>
{"".join(_settings(first, name, len(names) > 1) for name in names)}
</section>
<footer>Every update, version and metric is in the Parquet files {"of the seed’s folder" if several else "beside this page"}.
The same job, scenario and seed make the same bytes again.</footer>"""
    return page(f"Anabranch: {title}", body)


def _longest(runs: Sequence[Played]) -> float:
    return max(float(run.document["virtual_seconds"]) for run in runs)


def _settings(run: Played, job: str, named: bool) -> str:
    title = f"<h3>{escape(job)}</h3>" if named else ""
    return title + parts.settings(run.document["scenario"], run.job(job)["file"])


def _job(runs: Sequence[Played], job: str, number: int) -> str:
    terms = runs[0].job(job)["file"]
    metric = reading.metric(runs[0], job)
    found = _bands(runs, job, metric)
    share = parts.is_share(metric, [value for one in found.values() for value in one.mean])
    look = Look(metric, share)
    pieces = [f"<section><h2>{escape(job)}: {escape(terms['aggregation']['strategy'])}</h2>"]
    pieces.append(_figures(runs, job, metric, share))
    if found:
        pieces.append(f"<figure>{pictures.curves(found, look, f'curve-{number}')}</figure>")
    pieces.append(_silos(runs, job, look, number))
    if len(runs) > 1:
        pieces.append(_seeds(runs, job, metric, share))
    pieces.append("</section>")
    pieces.append(_given(runs, job, number))
    return "\n".join(pieces)


def _bands(runs: Sequence[Played], job: str, metric: str) -> dict[str, Band]:
    found = {words: [reading.curve(run, job, metric, kind) for run in runs] for kind, words in KINDS.items()}
    if not any(len(curve.times) for curve in found[KINDS["measured"]]):
        found = {EVALUATED: [reading.evaluations(run, job, metric) for run in runs]}
    return {words: band(curves) for words, curves in found.items() if all(len(one.times) for one in curves)}


def _figures(runs: Sequence[Played], job: str, metric: str, share: bool) -> str:
    found = [run.job(job) for run in runs]
    finals = [one["final"][metric] for one in found if metric in one["final"]]
    outcomes = {name: sum(one["updates"][name] for one in found) for name in reading.OUTCOMES}
    sent, refused = sum(outcomes.values()), outcomes["refused"]
    late = [one["staleness"]["mean"] for one in found if one["staleness"]]
    rows = [
        (f"{np.mean([one['versions'] for one in found]):.0f}", "model versions" + _each(runs)),
        (
            f'{outcomes["merged"]} <span class="of">of {sent}</span>',
            f"updates merged, {refused} refused, {outcomes['retired']} retired",
        ),
        (f"{np.mean(late):.1f}" if late else "–", "mean staleness, in versions"),
        (size(sum(one["bytes_up"] for one in found) / len(runs)), "uploaded" + _each(runs)),
        (size(sum(one["bytes_down"] for one in found) / len(runs)), "downloaded" + _each(runs)),
    ]
    if any(one["revivals"] for one in found):
        made = [one["revivals"].get("revived", 0) for one in found]
        rows.append((f"{np.mean(made):.0f}", "revivals" + _each(runs)))
    if finals:
        mean = interval(finals)
        half = ""
        if mean.low is not None:
            scale = 100 if share else 1
            half = f' <span class="of">± {scale * (mean.mean - mean.low):.2g}</span>'
        rows.insert(0, (parts.value(mean.mean, share) + half, f"{escape(metric)}, mean of the last fifth"))
    return '<dl class="figures">' + "".join(f"<div><dd>{a}</dd><dt>{b}</dt></div>" for a, b in rows) + "</dl>"


def _each(runs: Sequence[Played]) -> str:
    return ", on average" if len(runs) > 1 else ""


def _silos(runs: Sequence[Played], job: str, look: Look, number: int) -> str:
    """Of one run every silo; over seeds, where a silo has other records each time, groups."""
    found = [reading.silo_curves(run, job, look.metric) for run in runs]
    if not all(found):
        return ""
    groups = reading.groups(runs[0])
    title = f'<h3 style="margin-top:34px">{escape(look.metric.capitalize())} on silos’ own records</h3>'
    if len(runs) == 1:
        return f"{title}<figure>{pictures.silos(found[0], groups, look, f'silos-{number}')}</figure>"
    bands = {
        group: band([band([one[s] for s in one if groups[s] == group]).points() for one in found])
        for group in dict.fromkeys(groups.values())
    }
    return f"{title}<figure>{pictures.curves(bands, look, f'silos-{number}')}</figure>"


def _seeds(runs: Sequence[Played], job: str, metric: str, share: bool) -> str:
    rows = []
    for run in runs:
        found = run.job(job)
        counts = [str(found["updates"][name]) for name in reading.OUTCOMES]
        late = f"{found['staleness']['mean']:.1f}" if found["staleness"] else "–"
        link = f'<a href="seed-{run.seed}/index.html">seed {run.seed}</a>'
        final = parts.value(found["final"].get(metric), share)
        rows.append((link, final, str(found["versions"]), *counts, late, escape(found["status"])))
    head = ("", escape(metric), "versions", *reading.OUTCOMES, "mean staleness", "status at the end")
    return parts.table(head, rows)


def _given(runs: Sequence[Played], job: str, number: int) -> str:
    every = [reading.given(run, job) for run in runs]
    by_group: dict[str, list[Given]] = {}
    by_silo: dict[str, list[Given]] = {}
    for row in (row for rows in every for row in rows):
        by_group.setdefault(row.group, []).append(row)
        by_silo.setdefault(row.silos[0], []).append(row)
    if len(by_group) > MOST_ROWS:
        by_group = {"all silos": [row for rows in by_group.values() for row in rows]}
    groups = {name: reading.together(rows) for name, rows in by_group.items()}
    silos = {name: reading.together(rows) for name, rows in by_silo.items()}
    shown: Mapping[str, Given] = silos if len(silos) <= MOST_ROWS else groups
    picture = pictures.staleness({name: one.staleness for name, one in groups.items()}, f"staleness-{number}")
    head = (
        "", "group" if shown is silos else "silos", "sent", *reading.OUTCOMES, "mean<br>staleness",
        "up", "down",
    )  # fmt: skip
    rows = [_row(name, one, shown is silos) for name, one in shown.items()]
    seeds = " All seeds together." if len(runs) > 1 else ""
    return f"""<section><h2>Who gave what</h2>
<p>An update is merged into a version, refused with a reason, or retired unused.{_reasons(runs, job)}{seeds}</p>
<figure>{picture}<figcaption>Staleness of merged updates; each group’s bars are as high as its largest.</figcaption></figure>
{parts.table(head, rows)}
</section>"""


def _row(name: str, one: Given, single: bool) -> tuple[str, ...]:
    late = f"{np.mean(one.staleness):.1f}" if one.staleness else "–"
    counts = [
        str(one.outcomes[outcome]) if one.outcomes[outcome] else '<td class="zero">0</td>'
        for outcome in reading.OUTCOMES
    ]
    who = escape(one.group) if single else str(len(one.silos))
    return escape(name), who, str(one.sent), *counts, late, size(one.bytes_up), size(one.bytes_down)


def _reasons(runs: Sequence[Played], job: str) -> str:
    found: dict[str, Any] = {}
    for run in runs:
        for of, reason in zip(run.updates["job"], run.updates["reason"], strict=True):
            if of == job and reason:
                found[reason] = found.get(reason, 0) + 1
    told = ", ".join(f"<code>{escape(reason)}</code> {count} ×" for reason, count in sorted(found.items()))
    return f" Reasons: {told}." if told else ""
