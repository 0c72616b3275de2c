"""Private cycles of managed training: what leaves a silo, what a kill changes, and what is refused."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.errors import Misuse, Refused
from anabranch.terms import parse_job_file
from anabranch.wire.tensors import read_tensors
from silo_agent.training import saved
from silo_agent.training.managed import Managed
from silo_agent.training.private.noise import Source
from silo_agent.training.task import Garbage, SiloData, load_task

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

TASK = """
import numpy as np, torch
from torch import nn

class Task:
    def model(self):
        model = nn.Sequential(nn.Linear(64, 8), NORM nn.Tanh(), nn.Linear(8, 10))
        model.register_buffer("scale", torch.ones(3))
        return model
    def dataset(self, data, split):
        with np.load(data.path) as file:
            return torch.utils.data.TensorDataset(torch.from_numpy(file["x"]), torch.from_numpy(file["y"]))
    def subjects(self, dataset):
        return [index // 5 for index in range(len(dataset))]
    def loss(self, model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)
    def evaluate(self, model, batches):
        return {"accuracy": 0.5}
"""
JOB = """
[job]
name = "t"
task = "task.py:Task"
seed = 5
[training]
buffers = "none"
batch_size = 48
optimizer = { name = "sgd", lr = 0.5 }
"""
PRIVATE = """
[privacy]
epsilon = 8.0
delta = 1e-5
cycles_max = 10
max_grad_norm = 0.5
"""
NOISE = {"noise_multiplier": 0.8, "sample_rate": 0.25}


@pytest.fixture
def make(tools: Any, tmp_path: Path) -> Callable[..., Any]:
    """A job on disk. `privacy`: more lines of `[privacy]`, None for no such part; `changes`: of `[training]`."""
    count = iter(range(100))

    def make(privacy: str | None = "", norm: str = "", **changes: Any) -> Any:
        folder = tmp_path / f"job{next(count)}"
        code = folder / "code"
        code.mkdir(parents=True)
        (code / "task.py").write_text(textwrap.dedent(TASK.replace("NORM", norm)))
        (code / "job.toml").write_text(JOB + ("" if privacy is None else PRIVATE + privacy))
        job = tools.make_job(folder, code, **changes)
        (folder / "work").mkdir()
        return job

    return make


def fixed(seed: int = 0) -> Source:
    """As the system would give keys, if it always gave the same ones."""
    return Source(np.random.default_rng(seed).bytes)


def managed(job: Any, data: Path, source: Source | None = None) -> Managed:
    task = load_task(job.folder / "archive", job.file.job.task, {})
    room = Managed(task, job.file, SiloData(data, {}), job.folder / "work")
    if source is not None:
        room._source = source
    return room


def private(job: Any, cycle: str, steps: int = 6, noise: dict[str, float] = NOISE) -> Any:
    return job.train(cycle, steps) | {"privacy": noise}


def quiet(_: Any) -> None:
    """Nobody wants to know about progress."""


def planted(digits: Path, folder: Path, record: np.ndarray[Any, Any] | float, label: int) -> Path:
    """The digits with another record in the place of number 17."""
    with np.load(digits) as file:
        x, y = file["x"].copy(), file["y"].copy()
    x[17], y[17] = record, label
    path = folder / f"planted{label}{np.mean(record):g}.npz"
    np.savez(path, x=x, y=y)
    return path


CANARIES = {"huge": 1e6, "nan": float("nan"), "infinite": float("inf"), "another": 0.25}


@pytest.mark.parametrize("lines", ["", 'clipping = "per_layer"', 'unit = "subject"', "physical_batch = 7"])
@pytest.mark.parametrize("canary", CANARIES)
def test_a_planted_record_moves_what_leaves_by_no_more_than_its_share(
    make: Any, digits: Path, tmp_path: Path, lines: str, canary: str
) -> None:
    """With and without it, under the same noise: all messages are the same to the byte, and so is the update but for
    deltas, which together move by no more than the noise was made for.
    """
    seen = []
    rate = 1.0  # it is in the step for certain
    for data in (digits, planted(digits, tmp_path, CANARIES[canary], 3)):
        job = make(lines)
        messages: list[Any] = []
        room = managed(job, data, fixed())
        messages.append(room.count())
        noise = {"noise_multiplier": 0.8, "sample_rate": rate}
        messages.append(room.train(private(job, "one", 1, noise), messages.append))
        update = read_tensors(job.folder / "work" / "one.safetensors", room.manifest)
        seen.append((messages, update, room.count()["units"]))
    (messages, update, units), (other_messages, other, _) = seen
    assert messages == other_messages
    moved = np.concatenate([(update[name] - other[name]).ravel().astype(float) for name in update])
    assert np.isfinite(moved).all()
    share = 2 * 0.5 * 0.5 / (rate * units)  # replaced: once its gradient less, once more; the bound, the rate
    assert 0 < np.linalg.norm(moved) <= share * (1 + 1e-4) + 1e-6
    assert set(update) == {"0.weight", "0.bias", "2.weight", "2.bias"}  # no buffer


def test_what_leaves_besides_the_update_says_nothing_of_the_records(make: Any, digits: Path) -> None:
    job = make()
    said: list[Any] = []
    answer = managed(job, digits).train(private(job, "one", 3), said.append)
    assert said == [{"is": "progress", "cycle": "one", "step": step, "steps": 3} for step in (1, 2, 3)]
    assert answer == {"is": "trained", "cycle": "one", "num_examples": 0, "steps": 3, "metrics": {}}


def test_no_two_runs_are_alike(make: Any, digits: Path) -> None:
    updates = []
    for _ in range(2):
        job = make()
        managed(job, digits).train(private(job, "one", 2), quiet)
        updates.append(job.update("one"))
    assert updates[0] != updates[1]


def test_a_batch_norm_is_refused_before_a_record_is_used(make: Any, digits: Path) -> None:
    job = make(norm="nn.BatchNorm1d(8, affine=False),")
    with pytest.raises(Garbage, match=r"module '1' \(BatchNorm1d\)"):
        managed(job, digits).train(private(job, "one"), quiet)
    assert not list((job.folder / "work").glob("*.safetensors"))


def test_noise_and_terms_go_together(make: Any, digits: Path) -> None:
    job, open_job = make(), make(None)
    with pytest.raises(Misuse, match=r"has \[privacy\], and the request says otherwise"):
        managed(job, digits).train(job.train("one"), quiet)
    with pytest.raises(Misuse, match=r"has no \[privacy\], and the request says otherwise"):
        managed(open_job, digits).train(private(open_job, "one"), quiet)
    with pytest.raises(Misuse, match="no training with privacy"):
        managed(job, digits).train(private(job, "one", noise=NOISE | {"noise_multiplier": 0.0}), quiet)
    with pytest.raises(KeyError):
        managed(job, digits).train(private(job, "one", noise={"sample_rate": 0.5}), quiet)
    for folder in (job.folder, open_job.folder):
        assert not list((folder / "work").glob("one*"))


def test_metrics_of_records_are_not_made(make: Any, digits: Path) -> None:
    job = make()
    with pytest.raises(Garbage) as refused:
        managed(job, digits).evaluate(job.evaluate("one"), quiet)
    assert refused.value.kind == "EvaluationUnsupported"


def test_units_are_counted(make: Any, digits: Path) -> None:
    for lines, units in (("", 400), ('unit = "subject"', 80), (None, 400)):
        assert managed(make(lines), digits).count() == {"is": "counted", "units": units}


class Spy:
    """What a source gave out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noise: list[torch.Tensor] = []
        self.chosen: list[list[int]] = []
        self.keys: list[bytes] = []
        noisy, chosen, key = Source.noisy, Source.chosen, Source._key

        def spied_noisy(source: Source, values: torch.Tensor, std: float) -> torch.Tensor:
            found = noisy(source, values, std)
            self.noise.append(found.flatten() - values.flatten().double())
            return found

        def spied_chosen(source: Source, count: int, rate: float) -> list[int]:
            self.chosen.append(chosen(source, count, rate))
            return self.chosen[-1]

        def spied_key(source: Source) -> bytes:
            self.keys.append(key(source))
            return self.keys[-1]

        monkeypatch.setattr(Source, "noisy", spied_noisy)
        monkeypatch.setattr(Source, "chosen", spied_chosen)
        monkeypatch.setattr(Source, "_key", spied_key)


def test_a_killed_cycle_goes_on_with_chance_it_never_used(
    make: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, job = Spy(monkeypatch), make(save_every="0s")
    seen: list[int] = []
    for last in (4, 2, 9):  # the second process is killed twice as soon as it has saved

        def killed(progress: Any, last: int = last) -> None:
            seen.append(progress["step"])
            if progress["step"] > last:
                raise KeyboardInterrupt

        room = managed(job, digits)
        if last == 9:
            answer = room.train(private(job, "one", 9), killed)
        else:
            with pytest.raises(KeyboardInterrupt):
                room.train(private(job, "one", 9), killed)
            held = (job.folder / "work" / "cycle.safetensors").read_bytes()
            assert not any(key in held or key.hex().encode() in held for key in spy.keys)
    assert answer is not None
    assert answer["steps"] == 9
    assert seen == [1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9]
    # Step 5 was done three times, each with noise and records of its own.
    assert len(spy.keys) == len(set(spy.keys)) == 3
    assert len({tuple(chosen) for chosen in spy.chosen}) == len(spy.chosen) == 11
    noise = torch.cat(spy.noise)
    values = noise[noise.abs() > 1e-3]
    assert len(torch.unique(values)) > 0.999 * len(values)


def test_a_cycle_that_is_to_have_other_noise_starts_again(make: Any, digits: Path) -> None:
    """A save of steps with less noise is not the start of a cycle with more."""
    job = make(save_every="0s")

    def killed(progress: Any) -> None:
        if progress["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        managed(job, digits).train(private(job, "one", 5), killed)
    seen: list[int] = []
    more = NOISE | {"noise_multiplier": 2.0}
    managed(job, digits).train(private(job, "one", 5, more), lambda p: seen.append(p["step"]))
    assert seen == [1, 2, 3, 4, 5]


def test_leaving_saves_and_the_same_lease_goes_on(make: Any, digits: Path) -> None:
    job = make()
    done: list[int] = []
    room = managed(job, digits)
    leaving = lambda: len(done) == 2  # noqa: E731
    assert room.train(private(job, "one", 5), lambda p: done.append(p["step"]), leaving) is None
    state = saved.read(job.folder / "work" / "cycle.safetensors")
    assert state["step"] == 2
    assert state["loss"] == 0
    managed(job, digits).train(private(job, "one", 5), lambda p: done.append(p["step"]))
    assert done == [1, 2, 3, 4, 5]


def test_the_proximal_pull_comes_after_clipping_and_noise(make: Any, digits: Path) -> None:
    """It is no record's, so it is neither clipped nor does it need noise: after two steps of the same noise the pull of
    the second, mu times the way of the first, is all that differs.
    """
    mu, lr, updates = 0.7, 0.5, {}
    for name, steps, proximal in (("way", 1, None), ("free", 2, None), ("pulled", 2, mu)):
        job = make(proximal=proximal)
        room = managed(job, digits, fixed(2))
        room.train(private(job, "one", steps), quiet)
        updates[name] = read_tensors(job.folder / "work" / "one.safetensors", room.manifest)
    for tensor, pulled in updates["pulled"].items():
        expected = updates["free"][tensor] - lr * mu * updates["way"][tensor]
        np.testing.assert_allclose(pulled, expected, atol=1e-6)


def test_the_noise_of_a_whole_cycle_has_the_scale_that_was_asked_for(make: Any, digits: Path) -> None:
    """Where clipping leaves of the records next to nothing: sums of k steps of noise in the delta that leaves."""
    job = make("", optimizer=parse_job_file(JOB).training.optimizer.model_copy(update={"lr": 1.0}))
    room, steps, rate = managed(job, digits), 16, 0.05
    room.train(private(job, "one", steps, {"noise_multiplier": 40.0, "sample_rate": rate}), quiet)
    update = read_tensors(job.folder / "work" / "one.safetensors", room.manifest)
    values = np.concatenate([tensor.ravel() for tensor in update.values()])
    expected = 40.0 * 0.5 * np.sqrt(steps) / (rate * 400)
    assert values.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * len(values)))


def test_without_opacus_the_site_is_told_what_to_install(
    make: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(Garbage, match=r"pip install 'anabranch\[privacy\]'") as refused:
        managed(make(), digits)
    assert refused.value.kind == "NoOpacus"
    managed(make(None), digits)


def test_a_private_job_requires_opacus() -> None:
    assert any(text.startswith("opacus") for text in parse_job_file(JOB + PRIVATE).requires)
    assert parse_job_file(JOB).requires == ()


@pytest.mark.parametrize(
    "lines",
    [
        'method = "ghost"\nunit = "subject"',
        'method = "ghost"\nclipping = "per_layer"',
        'clipping = "adaptive"',
    ],
)
def test_terms_that_cannot_be_kept_are_refused(lines: str) -> None:
    with pytest.raises(Refused):
        parse_job_file(JOB + PRIVATE + lines)
