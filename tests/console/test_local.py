"""The evaluation program, run as the demo runs it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from console import submit
from console.demo import data, measure
from console.demo.federation import Place
from console.demo.plan import Plan, SiloPlan

JOB = Path(submit.__file__).parent / "demo" / "job"


@pytest.fixture(scope="module")
def measured(tmp_path_factory, uploaded):
    """One silo of two; the "federated" model is version 0 itself, so local training must beat it."""
    place = Place(tmp_path_factory.mktemp("demo"))
    place.logs.mkdir()
    parts = data.deal(2, 0)
    for part in parts:
        data.write(part, place.data(part.silo))
    place.together.mkdir(parents=True)
    data.save(place.together / "validation.npz", data.together(parts))
    folder, file = submit.read(JOB)
    _, initial = uploaded
    plan = Plan(
        folder=str(folder), file=file, initial=str(initial), model=str(initial),
        versions={0: str(initial), 1: str(initial)}, averages={1: str(initial)}, together=str(place.together),
        silos=(SiloPlan(name=parts[0].silo, data=str(place.data(parts[0].silo))),),
        steps=300, looks=3, tune_steps=40, tune_learning_rate=0.1,
    )  # fmt: skip
    return measure.measure(place, plan), parts, initial


def _accuracy(path: Path, records: data.Records) -> float:
    tensors = load_file(path)
    hidden = np.maximum(records.pixels @ tensors["1.weight"].T + tensors["1.bias"], 0)
    answers = (hidden @ tensors["3.weight"].T + tensors["3.bias"]).argmax(1)
    return float((answers == records.labels).mean())


def test_accuracies_are_those_of_the_model_file(measured) -> None:
    found, parts, initial = measured
    together = data.together(parts)
    assert found["versions"]["0"] == found["averages"]["1"] == pytest.approx(_accuracy(initial, together))
    federated = found["silos"][parts[0].silo]["federated"]
    assert federated["own"] == pytest.approx(_accuracy(initial, parts[0].held_out))
    assert federated["all"] == pytest.approx(_accuracy(initial, together))


def test_local_training_is_shown_at_its_best_point(measured) -> None:
    found, _, _ = measured
    for silo in found["silos"].values():
        local = silo["local"]
        assert local["own"] == max(point["own"] for point in local["path"])
        assert local["path"][-1]["steps"] == local["trained_steps"] == 300
        assert local["own"] > 0.8
        assert local["all"] <= local["own"]
        assert silo["tuned"]["own"] > silo["federated"]["own"]


def test_work_is_dealt_to_processes_and_nothing_is_done_twice() -> None:
    silos = tuple(SiloPlan(name=str(n), data="d") for n in range(5))
    _, file = submit.read(JOB)
    plan = Plan(
        folder="f", file=file, initial="i", model="m", versions={0: "i"}, averages={}, silos=silos, together="t",
        steps=10, looks=1, tune_steps=1, tune_learning_rate=0.1,
    )  # fmt: skip
    shares = measure.shares(plan, 3)
    assert sorted(silo.name for share in shares for silo in share.silos) == ["0", "1", "2", "3", "4"]
    assert [len(share.versions) for share in shares] == [1, 0, 0]
    assert len(measure.shares(plan, 64)) == 5
