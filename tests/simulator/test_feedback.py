"""A simulated silo keeps what its accepted updates left out, as an agent does, and nothing of a refused one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from simulator import state
from simulator.engine import Run, silo_names
from simulator.link import update_travelled
from simulator.memory import Memory
from simulator.rows import Rows
from simulator.trainers import SyntheticTrainer
from tests.simulator.test_rooms import planned, scenario

RULE = (
    "buffer = 2\nmax_update_norm = 0.5\n[link]\nupload_density = 0.2\nupload_chunk = 8\n"
    'upload_values = "int2"\nupload_feedback = 1.0'
)


def test_it_is_charged_for_accepted_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, rows, sent = scenario(), Rows(), []
    assert settings.synthetic is not None

    def noted(delta: Any, packing: Any, feedback: Any, remainder: Any) -> Any:
        sent.append((delta, remainder, update_travelled(delta, packing, feedback, remainder)))
        return sent[-1][2]

    monkeypatch.setattr(state, "update_travelled", noted)
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    server = Memory([planned(trainer, RULE)], silo_names(settings), rows)
    Run(settings, server, trainer, rows).play()
    told = list(zip(rows.updates["silo"], rows.updates["reason"], sent, strict=True))
    assert {reason for _, reason, _ in told} >= {"", "norm_exceeded"}
    for silo in server.silos:
        expected = check([(reason, one) for name, reason, one in told if name == silo])
        assert server.jobs["vector"].remainders[silo] is expected


def check(updates: Sequence[Any]) -> Any:
    """What one silo keeps at last; of what it learned nothing else is missing."""
    kept, missing = None, np.zeros(40)
    for reason, (delta, remainder, travelled) in updates:
        assert remainder is kept
        if not reason:
            kept = travelled.remainder
            missing += delta.values.astype(np.float64) - travelled.values.values
    assert kept is not None
    np.testing.assert_allclose(kept.values, missing, atol=1e-5)
    return kept
