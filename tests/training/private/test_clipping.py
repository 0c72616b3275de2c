"""A step's gradient against what a person would compute by hand, in each way there is to come to it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anabranch.privacy import Privacy
from silo_agent.training.private.clipping import MARGIN
from silo_agent.training.private.mechanism import Mechanism
from silo_agent.training.private.noise import Source
from silo_agent.training.private.units import Units
from silo_agent.training.task import Garbage

NONE = 1e-12  # a noise multiplier whose noise is below rounding
BOUND = 1.2

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
Make = Callable[[], nn.Module]


class Task:
    """`reduction`: "mean", or "none" for one loss for each record."""

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def __repr__(self) -> str:
        return f"Task({self.reduction!r})"

    def model(self) -> nn.Module:
        raise NotImplementedError

    def dataset(self, data: Any, split: str) -> Any:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction=self.reduction)


def records(count: int = 23, width: int = 6, words: bool = False) -> list[tuple[torch.Tensor, int]]:
    """Some have gradients below the bound, some far above it."""
    generator = torch.Generator().manual_seed(4)
    sizes = torch.logspace(-2, 2, count)
    if words:
        return [(torch.randint(0, 9, (5,), generator=generator), i % 4) for i in range(count)]
    return [(torch.randn(width, generator=generator) * sizes[i], i % 4) for i in range(count)]


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv1d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


class Words(nn.Module):
    """An embedding, layers of three dimensions, and one with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.inner(self.words(x))).relu()
        found: torch.Tensor = self.head(hidden.mean(1))
        return found


def mechanism(
    model: nn.Module,
    data: Sequence[Any],
    task: Any = None,
    units: Units | None = None,
    noise: float = NONE,
    rate: float = 1.0,
    source: Source | None = None,
    **privacy: Any,
) -> Mechanism:
    model.train()
    return Mechanism(
        task or Task(),
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        Privacy(epsilon=1, delta=1e-5, cycles_max=1, max_grad_norm=BOUND, **privacy),
        {"noise_multiplier": noise, "sample_rate": rate},
        units or Units(len(data), None),
        lambda indices: [data[index] for index in indices],
        torch.utils.data.default_collate,
        source or Source(),
    )


def step(model: nn.Module, data: Sequence[Any], **of: Any) -> list[torch.Tensor]:
    """The gradient that the optimizer would see."""
    made = mechanism(model, data, **of)
    made.gradient()
    made.close()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def by_hand(
    model: nn.Module,
    data: Sequence[Any],
    units: Sequence[Sequence[int]] | None = None,
    per_layer: bool = False,
) -> list[torch.Tensor]:
    """Each unit's gradient by torch alone, scaled to the bound if it is longer, added up and divided."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    units = units or [[i] for i in range(len(data))]
    for unit in units:
        loss = sum(Task().loss(model, torch.utils.data.default_collate([data[i]])) for i in unit) / len(unit)
        gradient = torch.autograd.grad(loss, parameters)  # type: ignore[arg-type]
        bound = BOUND * (1 - MARGIN)
        if per_layer:
            factors = [
                min(1.0, bound / len(parameters) ** 0.5 / max(float(g.norm()), 1e-9)) for g in gradient
            ]
        else:
            whole = float(torch.cat([g.flatten() for g in gradient]).norm())
            factors = [min(1.0, bound / whole)] * len(gradient)
        for one, part, factor in zip(total, gradient, factors, strict=True):
            one += part * factor
    return [one / len(units) for one in total]


def near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a, b, rtol=2e-4, atol=2e-7) for a, b in pairs)


WAYS: list[dict[str, Any]] = [
    {},
    {"task": Task("none")},
    {"physical_batch": 4},
    {"method": "ghost", "task": Task("none")},
    {"method": "ghost", "task": Task("none"), "physical_batch": 4},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("make", [dense, convolutional, Words])
def test_a_step_without_noise_is_the_clipped_mean(make: Make, way: dict[str, Any]) -> None:
    """So hooks and ghost clipping are the same, and so are many small batches and a large one."""
    torch.manual_seed(0)
    model, data = make(), records(words=make is Words)
    expected = by_hand(model, data)
    assert near(step(model, data, **way), expected)
    whole = torch.cat([g.flatten() for g in expected])
    assert 0 < float(whole.norm()) <= BOUND


def test_some_gradients_are_clipped_and_some_are_not() -> None:
    """Or the tests above said little."""
    torch.manual_seed(0)
    model, data = dense(), records()
    alone = [torch.cat([g.flatten() for g in by_hand(model, [one])]).norm() for one in data]
    clipped = [norm > BOUND * 0.99 for norm in alone]
    assert 3 < sum(clipped) < len(data) - 3, alone


@pytest.mark.parametrize("physical", [None, 5])
def test_per_layer_clipping_shares_the_bound(physical: int | None) -> None:
    torch.manual_seed(0)
    model, data = dense(), records()
    found = step(model, data, clipping="per_layer", physical_batch=physical)
    assert near(found, by_hand(model, data, per_layer=True))


@pytest.mark.parametrize("physical", [None, 2, 7])
def test_a_subjects_gradient_is_the_mean_of_its_records_and_clipped_once(physical: int | None) -> None:
    """Also of a subject with more records than go into memory."""
    torch.manual_seed(0)
    model, data = dense(), records()
    subjects = [list(range(9)), [9], [10, 22], list(range(11, 22))]
    found = step(model, data, units=Units(4, subjects), unit="subject", physical_batch=physical)
    assert near(found, by_hand(model, data, subjects))


def test_a_frozen_part_takes_none_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, data = dense(), records()
    model[0].requires_grad_(False)  # type: ignore[operator, index]
    expected = by_hand(model, data)
    assert near(step(model, data), expected)
    assert len(expected) == 2


def test_tied_weights_are_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.inner(self.inner(x).tanh()))
            return found

    torch.manual_seed(0)
    model, data = Tied(), records()
    assert near(step(model, data), by_hand(model, data))


def test_the_sum_is_divided_by_the_expected_number_of_units() -> None:
    """Not by how many there were, which would give it away."""
    torch.manual_seed(0)
    model, data = dense(), records(60)
    sums = []
    for seed in range(3):
        source = Source(np.random.default_rng(seed).bytes)
        chosen = Source(np.random.default_rng(seed).bytes).chosen(60, 0.3)
        found = step(model, data, rate=0.3, source=source)
        clipped = by_hand(model, [data[i] for i in chosen])
        assert near(found, [g * len(chosen) / (0.3 * 60) for g in clipped])
        sums.append(len(chosen))
    assert len(set(sums)) > 1


def test_an_empty_batch_is_noise_alone() -> None:
    torch.manual_seed(0)
    model, data = dense(), records()
    found = torch.cat([g.flatten() for g in step(model, data, rate=1e-9, noise=2.0)])
    scaled = found * (1e-9 * len(data)) / (2.0 * BOUND)
    assert 0.5 < float(scaled.std()) < 1.5
    assert float(scaled.abs().max()) < 6


@pytest.mark.parametrize("way", [{}, {"method": "ghost", "task": Task("none")}], ids=str)
def test_the_noise_has_the_scale_that_was_asked_for(way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(6, 4), records()
    exact = by_hand(model, data)
    many = [
        torch.cat(
            [(a - b).flatten() for a, b in zip(step(model, data, noise=1.5, **way), exact, strict=True)]
        )
        for _ in range(150)
    ]
    values = torch.stack(many) * len(data)
    assert float(values.std()) == pytest.approx(1.5 * BOUND, rel=0.05)
    assert abs(float(values.mean())) < 5 * 1.5 * BOUND / values.numel() ** 0.5
    # No step has the noise of another, no parameter that of another.
    assert len(torch.unique(values)) > 0.99 * values.numel()


MONSTERS = {
    "large": torch.full((6,), 1e30),
    "infinite": torch.full((6,), float("inf")),
    "nan": torch.full((6,), float("nan")),
    "of another sign": torch.full((6,), -3e4),
}


@pytest.mark.parametrize("way", [*WAYS, {"clipping": "per_layer"}], ids=str)
@pytest.mark.parametrize("monster", list(MONSTERS))
def test_one_record_moves_a_step_by_no_more_than_the_bound(monster: str, way: dict[str, Any]) -> None:
    """With the same noise and the same coins, whatever the record is: what the noise is made for."""
    torch.manual_seed(0)
    model, data = dense(), records()
    there = [*data, (MONSTERS[monster], 1)]
    away = [*data, data[0]]
    moved = []
    for some in (there, away):
        coins = Source(np.random.default_rng(5).bytes)
        # Its unit is the last, so that the coins of the others are the same.
        found = step(model, some, noise=0.8, source=coins, **way)
        moved.append(torch.cat([g.flatten() for g in found]).double() * len(some))
    assert torch.isfinite(moved[0]).all()
    assert float((moved[0] - moved[1]).norm()) <= 2 * BOUND * (1 + 1e-5)


def test_numbers_that_would_be_no_privacy_are_refused() -> None:
    from anabranch.errors import Misuse

    for noise, rate in (
        (0.0, 0.1),
        (-1.0, 0.1),
        (1.0, 0.0),
        (1.0, 1.1),
        (float("nan"), 0.1),
        (float("inf"), 0.1),
        (1.0, float("nan")),
    ):
        with pytest.raises(Misuse):
            mechanism(dense(), records(), noise=noise, rate=rate)


def test_without_records_there_is_nothing_to_train() -> None:
    with pytest.raises(Garbage, match="no records"):
        mechanism(dense(), [])


def test_nothing_of_opacus_is_left_on_the_model() -> None:
    torch.manual_seed(0)
    model, data = dense(), records()
    step(model, data)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert not any(getattr(p, "grad_sample", None) is not None for p in model.parameters())
    assert near(step(model, data), by_hand(model, data))
