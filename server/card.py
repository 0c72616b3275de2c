"""The model card that travels with an exported version: where it comes from, in words a stranger can check."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from anabranch.terms import JobFile, parse_terms
from anabranch.tlog.entry import parse_entry
from anabranch.tlog.revivals import RevivalPerformed
from anabranch.wire import canonical
from server.state.tables import entries, evaluations, revivals, steps, updates

_MADE_OF = select(steps.c.plan).where(
    steps.c.job == bindparam("job"), steps.c.status == "published", steps.c.head < bindparam("version")
)
_ADDED = (
    select(revivals.c.id, revivals.c.teachers, entries.c.data)
    .join(entries, entries.c.index == revivals.c.entry)
    .where(revivals.c.job == bindparam("job"), revivals.c.status == "used")
)


def model_card(connection: Connection, job: Any, version: int, digest: str, selector: str) -> str:
    """Markdown. States only what the state store holds; nothing about data, which the server never saw."""
    terms = parse_terms(job.terms).file
    merged = (
        select(updates.c.silo, func.count(), func.avg(updates.c.staleness))
        .where(updates.c.job == job.id, updates.c.status == "merged", updates.c.version <= version)
        .group_by(updates.c.silo)
        .order_by(updates.c.silo)
    )
    revived = _revivals(connection, job.id, version) if terms.revival else []
    taught = Counter(silo for row in revived for silo in json.loads(row.teachers))
    lines = [
        f"# {job.name}, version {version}" + (" (exponential average)" if selector == "ema" else ""),
        "",
        f"- SHA-256 `{digest}`",
        f"- job `{job.id}`, terms `{job.terms_digest}`",
        f"- code archive `{parse_terms(job.terms).archive_sha256}`, task `{terms.job.task}`, seed {terms.job.seed}",
        f"- strategy {terms.aggregation.strategy}, server optimizer {terms.aggregation.server_optimizer.name} "
        f"(lr {terms.aggregation.server_optimizer.lr:g}), {terms.steps} local steps per update",
        f"- {_revived(terms, version, revived)}",
        *_adapted(job.terms),
        "",
        "| silo | updates merged | mean staleness | revivals taught |",
        "| --- | --- | --- | --- |",
        *(
            f"| {silo} | {count} | {staleness:.1f} | {taught[silo]} |"
            for silo, count, staleness in connection.execute(merged)
        ),
        "",
        f"Evaluated by {_evaluated(connection, job.id, version)} silos on their own `{terms.evaluation.split}` records.",
        "",
        f"{_loading(terms)} `anabranch-audit replay` on an export of the audit log recomputes "
        "this file, byte for byte, from the signed updates.",
        "",
    ]
    return "\n".join(lines)


def _adapted(approved: bytes) -> list[str]:
    """What of the model trained, and what this file is of no use without."""
    terms = parse_terms(approved)
    adapter, base = terms.file.adapter, terms.file.job.base
    lines = []
    if adapter is not None:
        pair = f", rank {adapter.rank}, alpha {adapter.alpha:g}" if adapter.kind == "lora" else ""
        lower = "".join(f", {rank} at {silo}" for silo, rank in sorted((adapter.ranks or {}).items()))
        frozen = ", A frozen and not in this file" if adapter.freeze_a else ""
        heads = f"; trained whole: {', '.join(adapter.heads)}" if adapter.heads else ""
        lines.append(f"- adapter {adapter.kind}{pair}{lower}{frozen}{heads}")
    if terms.base_sha256 is not None:
        what = f"base model `{base}`, " if base is not None else ""
        lines.append(f"- {what}frozen weights `{terms.base_sha256}`, which are not in this file")
    return lines


def _loading(terms: JobFile) -> str:
    if terms.adapter is not None and terms.adapter.kind == "lora":
        return (
            "Load the folder beside it with `peft.PeftModel.from_pretrained(base, FOLDER)`; `anabranch job export --merge` "
            "writes one checkpoint of the whole."
        )
    return "Load it with `safetensors.torch.load_file`."


def _evaluated(connection: Connection, job: str, version: int) -> int:
    query = select(func.count()).where(evaluations.c.job == job, evaluations.c.version == version)
    return connection.execute(query).scalar_one()


def _revivals(connection: Connection, job: str, version: int) -> Sequence[Any]:
    """Those whose results were added to versions up to `version`."""
    plans = connection.execute(_MADE_OF, {"job": job, "version": version}).scalars()
    added = {json.loads(plan)["buffer"].get("revival") for plan in plans}
    return [row for row in connection.execute(_ADDED, {"job": job}) if row.id in added]


def _revived(terms: JobFile, version: int, revived: Sequence[Any]) -> str:
    """Whether what a reviver distilled is in this version, and how much of it."""
    if terms.revival is None:
        return "no revival"
    if not revived:
        return "the terms ask for revival, but nothing distilled was added to any version up to this one"
    norms = [_norm(row.data) for row in revived]
    return (
        f"revival: {terms.revival.gain:g} times what a reviver distilled from silos' models, on inputs it made from them, "
        f"was added to {len(revived)} of {version} versions (length of the distilled step, in the mean: "
        f"{sum(norms) / len(norms):.3g})"
    )


def _norm(entry: bytes) -> float:
    detail = parse_entry(bytes(entry)).detail
    assert isinstance(detail, RevivalPerformed), "of a revival that was used"
    return canonical.from_hexfloat(detail.norm)
