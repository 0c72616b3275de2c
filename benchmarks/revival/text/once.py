"""One distillation by itself: a head that knows some kinds of questions, and teachers that hold the others.

From a common start every teacher trains on two of six kinds alone. The head is the mean of the first two of the three:
nothing of it has seen the last two kinds since the start. Then it is revived a few times, on each kind of inputs.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from anabranch.terms import Revival, parse_job_file
from reviver.lessons import reviver_of
from reviver.reviver import Reviver
from silo_agent.training.managed import build_model
from silo_agent.training.task import SiloData, load_task

TEACHERS, KINDS, BEGUN, STEPS, BATCH, LR = 3, 6, 60, 30, 8, 0.006
REVIVALS, PUBLIC = 4, 400
SETTINGS = {"freeze": 0, "warmup": 0, "gain": 1.0, "lr": 0.003, "synthesis_every": 1, "synthesis_batch": 32}

Values = dict[str, Tensor]


def tell(out: Path) -> None:
    for seed in (0, 1, 2):
        for name, (before, after, sure) in played(out, seed).items():
            print(
                f"seed {seed}, {name:10} accuracy {before:.1%} → {after:.1%}; of the kinds it lacks {sure:.1%}"
            )


def played(out: Path, seed: int) -> dict[str, tuple[float, float, float]]:
    """By what inputs are made of: accuracy of the head before, after, and after on the two kinds it lacks."""
    torch.set_num_threads(1)
    file = parse_job_file((out / "job" / "job.toml").read_text())
    task = load_task(out / "job", file.job.task, file.job.params)

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        return build_model(task, file, out / "minilm")

    def records(name: str) -> tuple[Tensor, Tensor]:
        found: TensorDataset = task.dataset(SiloData(out / f"{name}.npz", {}), "train")  # type: ignore[assignment]
        return found.tensors[0], found.tensors[1]

    (x, y), (test_x, test_y) = records("train"), records("test")
    taught, other = (x[PUBLIC:], y[PUBLIC:]), TensorDataset(x[:PUBLIC], y[:PUBLIC])
    begun = _trained(fresh(), {}, taught, BEGUN, seed)
    teachers = []
    for number in range(TEACHERS):
        own = taught[1] * TEACHERS // KINDS == number
        teachers.append(_trained(fresh(), begun, (taught[0][own], taught[1][own]), STEPS, seed))
    head = {name: (teachers[0][name] + teachers[1][name]) / 2 for name in begun}
    found = {}
    for synthesis in ("generator", "noise", "public"):
        task.public = lambda: other  # type: ignore[attr-defined]
        settings = Revival.model_validate({**SETTINGS, "synthesis": synthesis})
        reviver = reviver_of(task, fresh(), settings, seed)
        for number, values in enumerate(teachers):
            assert reviver.teachers.take(f"silo-{number}", values, begun) == ""
        after = _revived(reviver, head)
        lacks = test_y * TEACHERS // KINDS == TEACHERS - 1
        right = [_right(reviver, values, test_x, test_y) for values in (head, after)]
        found[synthesis] = (
            float(right[0].mean()),
            float(right[1].mean()),
            float(right[1][lacks].mean()),
        )
    return found


def _revived(reviver: Reviver, head: Values) -> Values:
    for version in range(1, REVIVALS + 1):
        revived = reviver.revive(head, version)
        assert not isinstance(revived, str), revived
        head = {name: head[name] + revived.delta[name] for name in head}
    return head


def _right(reviver: Reviver, values: Values, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (reviver._network(values, x).argmax(1) == y).float()


def _trained(
    model: nn.Module, start: Values, records: tuple[Tensor, Tensor], steps: int, seed: int
) -> Values:
    """What travels of the model, after as many steps."""
    model.load_state_dict(start, strict=False)
    trains = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer, chance = torch.optim.AdamW(trains.values(), lr=LR), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randint(0, len(records[1]), (BATCH,), generator=chance)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(records[0][some]), records[1][some]).backward()
        optimizer.step()
    return {name: one.detach().clone() for name, one in trains.items()}
