"""How fast a cycle goes is counted beside the job's code, and costs it nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.wire.limits import PER_SECOND
from silo_agent.training.ranks import _together
from silo_agent.training.speed import MARKS, Meter, counts

IDS = torch.zeros((4, 7), dtype=torch.int64)
PICTURES = torch.zeros((4, 3, 8, 8))


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (IDS, (4, 28)),
        ({"input_ids": IDS.int(), "labels": PICTURES}, (4, 28)),
        ([PICTURES, IDS], (4, 0)),
        ((((IDS,),), {}), (4, 28)),
        ((IDS.bool(), IDS), (4, 0)),
        (IDS.to(torch.uint8), (4, 0)),  # a picture, flattened
        (torch.zeros(4, dtype=torch.int64), (4, 0)),
        (torch.tensor(3), (0, 0)),
        (["a text", 3], (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_what_a_batch_shows(batch: Any, found: tuple[int, int]) -> None:
    assert counts(batch) == found


def test_a_speed_is_of_the_newest_steps_and_is_a_number_that_may_be_sent() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.count(10**15, 0)
    assert meter.speed() == {"samples_per_second": 0.0, "tokens_per_second": 0.0}  # no time has passed
    clock.now += 1
    assert meter.speed()["samples_per_second"] == PER_SECOND
    for _ in range(2 * MARKS):
        clock.now += 2
        meter.count(32, 32 * 7)
        speed = meter.speed()
    assert speed == {"samples_per_second": 16.0, "tokens_per_second": 112.0}
    for _ in range(1000):  # many quick steps do not shorten what is looked at
        clock.now += 0.01
        meter.count(1, 0)
        speed = meter.speed()
    assert 30 < speed["samples_per_second"] < 100


def test_a_model_is_counted_while_it_trains_and_only_then() -> None:
    model, meter = torch.nn.Linear(8, 2), Meter(Clock())
    stop = meter.watch(model)
    model(torch.zeros(5, 8))
    with torch.no_grad():
        model(torch.zeros(5, 8))
    model.eval()(torch.zeros(5, 8))
    model.train()
    stop()
    model(torch.zeros(5, 8))
    assert meter._samples == 5


def test_what_a_script_may_do_with_its_model_it_may_do_while_it_is_counted(tmp_path: Path) -> None:
    model, meter = torch.nn.Linear(8, 2), Meter()
    meter.watch(model)
    compiled = 0

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward  # type: ignore[no-any-return]

    fast = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(5):
        fast(torch.zeros(5, 8)).sum().backward()
    assert compiled == 1  # once, and not once a step
    pickle.loads(pickle.dumps(model))
    torch.save(model, tmp_path / "model.pt")
    scripted = torch.jit.script(torch.nn.Linear(8, 2))
    Meter().watch(scripted)()


def test_ranks_are_told_together() -> None:
    first: Any = {"is": "progress", "cycle": "l", "step": 3, "steps": 6, "samples_per_second": 10.0}
    second: Any = first | {"step": 2, "samples_per_second": 12.5, "tokens_per_second": PER_SECOND}
    told = _together(first, [first, second, second])
    assert (told["step"], told["samples_per_second"], told["tokens_per_second"]) == (3, 35.0, PER_SECOND)
