"""`anabranch-silo budget`: from the ledger and the policy alone, without the server, also while the agent runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anabranch.errors import Reason, Refused
from anabranch.wire import canonical
from silo_agent import output, policy
from silo_agent.budget import accounting
from silo_agent.budget.balance import Balance, JobBalance, balances
from silo_agent.budget.ledger import Charge, Ledger, open_ledger
from silo_agent.budget.picture import draw
from silo_agent.budget.spending import Spending
from silo_agent.config import Home
from silo_agent.options import HERE, Dir, Json


def budget(
    binding: Annotated[
        str | None, typer.Argument(help="A data binding of policy.toml: with its history. Default: all.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw epsilon over the cycles into this file.")
    ] = None,
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """What private jobs have revealed of this site's data, and how many cycles are left. Read from the ledger here."""
    home = Home(directory)
    rules = policy.load_policy(home.policy) if home.policy.exists() else policy.Policy()
    ledger = open_ledger(home)
    found = [one for one in balances(ledger, rules) if binding in (None, one.binding)]
    if binding is not None and not found:
        raise Refused(
            Reason.NOT_FOUND,
            f"no private job has used data {binding!r}, and policy.toml has no [data.{binding}.privacy]",
        )
    if picture is not None:
        draw(found, picture)
    output.show(_document(ledger, found), _page(found, binding is not None), as_json)


def left(spending: Spending | None) -> tuple[str, int | None]:
    """What `anabranch-silo jobs` says of a job, in words and as a number; "" for one without [privacy]."""
    if spending is None:
        return "", None
    cycles = spending.cycles_left()
    if cycles is None:
        return (
            f"{spending.privacy.cycles_max} cycles at most; how many the data's budget holds shows in the first",
            None,
        )
    if cycles == 0:
        return "exhausted: this silo trains no more for it", 0
    return f"{cycles} of {spending.privacy.cycles_max} cycles left", cycles


def health(home: Home, needed: bool, clock: Callable[[], float]) -> str:
    """What `anabranch-silo check` says of the ledger; `needed`: a job with [privacy] may come. Raises Corrupt, Refused."""
    ledger = open_ledger(home, clock)
    ledger.check_clock()
    charges = ledger.charges()
    if needed or charges:
        accounting.require()
    if not charges:
        return "no ledger yet: nothing was spent"
    return (
        f"{len(charges)} cycles charged, the chain of {ledger.path.name} holds up to {charges[-1].hash[:12]}…"
    )


def _document(ledger: Ledger, found: Sequence[Balance]) -> dict[str, Any]:
    charges = ledger.charges()
    return {
        "events": len(charges),
        "head": charges[-1].hash if charges else None,
        "bindings": [
            {
                "binding": one.binding,
                "unit": one.unit,
                "epsilon": one.spent,
                "epsilon_pld": one.tighter,
                "delta": one.delta,
                "ceiling": one.ceiling.model_dump(mode="json") if one.ceiling else None,
                "jobs": [{**vars(job), "newest": vars(job.newest)} for job in one.jobs],
                "history": [_event(charge) for charge in one.charges],
            }
            for one in found
        ],
    }


def _event(charge: Charge) -> dict[str, Any]:
    spend = charge.spend
    return {
        "sequence": charge.sequence,
        "time": canonical.utc(charge.time),
        **{name: value for name, value in vars(spend).items() if name not in ("binding", "event")},
        **vars(spend.event),
        "hash": charge.hash,
    }


def _page(found: Sequence[Balance], with_history: bool) -> RenderableType:
    if not found:
        return "no private job has used data here, and policy.toml sets no ceiling ([data.NAME.privacy])"
    parts: list[RenderableType] = []
    for one in found:
        parts += [_headline(one), *([_jobs(one.jobs)] if one.jobs else [])]
        if with_history and one.charges:
            parts.append(_history(one.charges))
    return Group(*parts)


def _headline(one: Balance) -> Text:
    of = f" of {one.ceiling.epsilon:g}" if one.ceiling else ", no ceiling in policy.toml"
    at = f" at delta {one.delta:g} for each {one.unit}" if one.unit else ""
    tighter = f" ({one.tighter:.3g} by tighter accounting)" if one.unit else ""
    return Text.assemble((one.binding, "bold"), f": epsilon {one.spent:.3g}{of}{at}{tighter}")


def _jobs(jobs: Sequence[JobBalance]) -> Table:
    table = _table("job", "cycles", "left", "epsilon", "noise", "sample rate")
    for job in jobs:
        table.add_row(
            Text(job.job),
            f"{job.cycles} of {job.cycles_max}",
            str(job.cycles_left) if job.cycles_left else "exhausted",
            f"{job.spent:.3g} of {job.epsilon:g} at {job.delta:g}",
            f"{job.newest.noise_multiplier:.4g}",
            f"{job.newest.sample_rate:.4g}",
        )
    return table


def _history(charges: Sequence[Charge]) -> Table:
    table = _table("time", "job", "cycle", "steps", "noise", "sample rate", "units")
    for charge in charges:
        spend = charge.spend
        table.add_row(
            canonical.utc(charge.time)[:19],
            Text(spend.job),
            Text(spend.cycle[:12]),
            str(spend.event.steps),
            f"{spend.event.noise_multiplier:.4g}",
            f"{spend.event.sample_rate:.4g}",
            str(spend.units),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
