"""The model card that travels with an exported version: where it comes from, in words a stranger can check."""

from typing import Any

from sqlalchemy import Connection, func, select

from anabranch.terms import parse_terms
from server.state.tables import evaluations, updates


def model_card(connection: Connection, job: Any, version: int, digest: str, selector: str) -> str:
    """Markdown. States only what the state store holds; nothing about data, which the server never saw."""
    terms = parse_terms(job.terms).file
    merged = (
        select(updates.c.silo, func.count(), func.avg(updates.c.staleness))
        .where(updates.c.job == job.id, updates.c.status == "merged", updates.c.version <= version)
        .group_by(updates.c.silo)
        .order_by(updates.c.silo)
    )
    lines = [
        f"# {job.name}, version {version}" + (" (exponential average)" if selector == "ema" else ""),
        "",
        f"- SHA-256 `{digest}`",
        f"- job `{job.id}`, terms `{job.terms_digest}`",
        f"- code archive `{parse_terms(job.terms).archive_sha256}`, task `{terms.job.task}`, seed {terms.job.seed}",
        f"- strategy {terms.aggregation.strategy}, server optimizer {terms.aggregation.server_optimizer.name} "
        f"(lr {terms.aggregation.server_optimizer.lr:g}), {terms.steps} local steps per update",
        "",
        "| silo | updates merged | mean staleness |",
        "| --- | --- | --- |",
        *(f"| {silo} | {count} | {staleness:.1f} |" for silo, count, staleness in connection.execute(merged)),
        "",
        f"Evaluated by {_evaluated(connection, job.id, version)} silos on their own `{terms.evaluation.split}` records.",
        "",
        "Load it with `safetensors.torch.load_file`. `anabranch-audit replay` on an export of the audit log recomputes "
        "this file, byte for byte, from the signed updates.",
        "",
    ]
    return "\n".join(lines)


def _evaluated(connection: Connection, job: str, version: int) -> int:
    query = select(func.count()).where(evaluations.c.job == job, evaluations.c.version == version)
    return connection.execute(query).scalar_one()
