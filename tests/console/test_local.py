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
    """Two silos; the "federated" model is version 0 itself, so local training must beat it."""
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
        silos=tuple(SiloPlan(name=part.silo, data=str(place.data(part.silo))) for part in parts),
        steps=300, looks=3, tune_steps=40, tune_learning_rate=0.1,
    )  # fmt: skip
    return measure.measure(place, plan), parts, initial


def _accuracy(path: Path, records: data.Records) -> float:
    tensors = load_file(path)
    hidden = np.maximum(records.pixels @ tensors["0.weight"].T + tensors["0.bias"], 0)
    answers = (hidden @ tensors["2.weight"].T + tensors["2.bias"]).argmax(1)
    return float((answers == records.labels).mean())


def test_accuracies_are_those_of_the_model_file(measured) -> None:
    found, parts, initial = measured
    together = data.together(parts)
    assert found["versions"]["0"] == found["averages"]["1"] == pytest.approx(_accuracy(initial, together))
    for part in parts:
        federated = found["silos"][part.silo]["federated"]
        assert federated["own"] == pytest.approx(_accuracy(initial, part.held_out))
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
