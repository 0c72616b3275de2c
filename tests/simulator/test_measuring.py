"""What the experimenter looks at: which records, which model, and a run's final figure."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_job_file
from silo_agent.training.task import Garbage
from simulator.reading import curve, evaluations, given, groups, metric, played, silo_curves, together
from simulator.results import files, final, write
from simulator.run import Told, play
from simulator.scenario import Scenario
from tests.simulator import samples

TASK = """import numpy as np
import torch

class Vector:
    def model(self):
        return torch.nn.Linear(1, 1)

    def dataset(self, data, split):
        with np.load(data.path) as file:
            x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
        number = {"train": 0, "test": 1, "validation": 2, "hard": 3}[split]
        return torch.utils.data.TensorDataset(x, y, torch.full_like(y, number))

    def loss(self, model, batch):
        return model(batch[0]).square().mean()

    def evaluate(self, model, batches):
        (_, y, number), *_ = batches
        return {"records": float(y[0]), "split": float(number[0]), "weight": float(model.weight.detach())}
"""


def measured(folder: Path, **measure: object) -> dict[tuple[str, str], list[float]]:
    """(kind, metric) → values of a run that is measured so."""
    samples.job(folder / "job")
    (folder / "job" / "task.py").write_text(TASK)
    for number, name in enumerate(("train", "test", "validation")):
        np.savez(folder / f"{name}.npz", x=np.ones((10, 1), np.float32), y=np.full(10, number, np.float32))
    paths = {"path": "train.npz", "test": "test.npz", "validation": "validation.npz"}
    scenario = Scenario.model_validate(
        {
            "horizon": "10s",
            "data": {"default": {key: folder / path for key, path in paths.items()}},
            "measure": {"every": "2s", **measure},
            "silos": [{"count": 2, "train": {"kind": "constant", "seconds": 1}}],
        }
    )
    rows = play([Told(parse_job_file(samples.JOB), folder / "job")], scenario).rows.metrics
    found: dict[tuple[str, str], list[float]] = {}
    for kind, name, value in zip(rows["kind"], rows["metric"], rows["value"], strict=True):
        found.setdefault((kind, name), []).append(value)
    return found


@pytest.mark.parametrize(
    ("asked", "records", "split"),
    [
        ({}, 1, 1),
        ({"records": "test"}, 1, 1),
        ({"records": "validation"}, 2, 2),
        ({"records": "validation", "split": "hard"}, 2, 3),
    ],
)
def test_measuring_reads_the_records_it_was_told(
    tmp_path: Path, asked: dict[str, object], records: float, split: float
) -> None:
    found = measured(tmp_path, **asked)
    assert set(found["measured", "records"]) == {records}
    assert set(found["measured", "split"]) == {split}
    assert ("averaged", "records") not in found


def test_the_average_is_measured_beside_the_head(tmp_path: Path) -> None:
    found = measured(tmp_path, average=True)
    head, average = found["measured", "weight"], found["averaged", "weight"]
    assert len(average) == len(head) - 1  # version 0 has none
    assert 0 < abs(average[-1] - head[0]) < abs(head[-1] - head[0])  # it comes after


def test_validation_records_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    samples.job(tmp_path / "job")
    scenario = Scenario.model_validate(
        {
            "horizon": "10s",
            "data": {"default": {"path": tmp_path / "a", "test": tmp_path / "b"}},
            "measure": {"every": "2s", "records": "validation"},
            "silos": [{"train": {"kind": "constant", "seconds": 1}}],
        }
    )
    with pytest.raises(Refused, match=r"\[measure\] needs \[data.default\] validation"):
        play([Told(parse_job_file(samples.JOB), tmp_path / "job")], scenario)


def look(at: float, value: float, kind: str = "measured", silo: str = "") -> dict[str, object]:
    return {"at": at, "value": value, "kind": kind, "silo": silo, "metric": "accuracy"}


def test_a_final_figure_is_the_mean_of_the_last_fifth() -> None:
    looks = [
        look(0, 9),
        look(79, 9),
        look(80, 1),
        look(100, 3),
        look(90, 7, silo="a"),
        look(90, 7, "averaged"),
    ]
    assert final(looks, 100, None) == {"accuracy": 2}
    assert final(looks[:3], 1000, 80) == {"accuracy": 5}
    assert final(looks[:2], 100, None) == {"accuracy": 9}  # nobody looked later
    assert final([], 100, None) == {}


def synthetic(folder: Path, text: str = samples.JOB) -> dict[str, bytes]:
    samples.world(folder)
    scenario = Scenario.model_validate(
        {
            "horizon": "120s",
            "synthetic": {"parameters": 10},
            "silos": [
                {"count": 2, "train": {"kind": "constant", "seconds": 1}},
                {"train": {"kind": "constant", "seconds": 7}},
            ],
        }
    )
    return dict(files(play([Told(parse_job_file(text), folder / "vector")], scenario)))


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = played(synthetic(tmp_path))
    assert list(groups(run)) == ["silo-00000", "silo-00001", "silo-00002"]
    assert len(set(groups(run).values())) == 2
    rows = given(run, "vector")
    whole = together(rows)
    assert whole.outcomes == run.job("vector")["updates"]
    assert np.mean(whole.staleness) == pytest.approx(run.job("vector")["staleness"]["mean"])
    assert np.mean(rows[2].staleness) > 3 * np.mean(rows[0].staleness)
    assert not len(curve(run, "vector", "accuracy").times)
    assert not silo_curves(run, "vector", "accuracy")


def test_without_measuring_the_silos_own_evaluations_are_shown(tmp_path: Path) -> None:
    run = played(synthetic(tmp_path, samples.JOB.replace("every = 1000000", "every = 10")))
    found = evaluations(run, "vector", metric(run, "vector"))
    rows = run.metrics
    of = {version: [] for version in rows["version"]}  # type: dict[int, list[float]]
    for version, name, value in zip(rows["version"], rows["metric"], rows["value"], strict=True):
        if name == "accuracy":
            of[version].append(value)
    assert len(of) > 3
    assert found.values.tolist() == pytest.approx([np.mean(values) for values in of.values()])
    assert (np.diff(found.times) > 0).all()


def test_a_folder_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    write(tmp_path / "run", {"a": b"1"})
    with monkeypatch.context() as broken:
        broken.setattr("simulator.results.durable.write", full)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "run", {"a": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "a").read_bytes() == b"1"
    write(tmp_path / "run", {"b": b"2"})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["b"]


def test_a_refusal_comes_back_from_another_process() -> None:
    for refusal in (Refused(Reason.QUOTA, "no more"), Garbage("NotFinite", "no more")):
        back = pickle.loads(pickle.dumps(refusal))
        assert isinstance(back, Refused)
        assert (back.code, str(back)) == (refusal.code, "no more")
