from collections.abc import Callable
from pathlib import Path

import pytest

from silo_agent.budget.accounting import Event
from silo_agent.budget.ledger import Ledger, Spend

NOON = 1_800_000_000.0


def spend(cycle: str = "l-0", **changes: object) -> Spend:
    facts = {
        "binding": "records", "job": "tiny-1", "cycle": cycle, "unit": "example", "units": 1000,
        "event": Event(0.1, 1.0, 10), "epsilon": 3.0, "delta": 1e-5, "cycles_max": 20,
    }  # fmt: skip
    return Spend(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.fixture
def reopened(tmp_path: Path) -> Callable[..., Ledger]:
    """The ledger as the next start finds it."""
    return lambda now=NOON, signed=None: Ledger(tmp_path, signed or {}, lambda: now)
