"""What mixes records, or keeps something of them, is found by trying a few."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from silo_agent.training.task import Garbage
from tests.training.private.proving import Each, Task, around, data, prove

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:Lazy modules")


class HandMade(nn.Module):
    """A batch norm that no name gives away."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.share * x.mean(0)


class OfTheLast(nn.Module):
    """Keeps the records before, and mixes them in."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, self.kept = self.kept, x.detach().mean(0)
        return x if kept is None else x + kept


class Unbiased(nn.Module):
    """Of a single record it makes no number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.std(0)


@pytest.mark.parametrize(
    "layer", [HandMade(), HandMade(0.01), OfTheLast(), Unbiased()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_a_forward_that_mixes_records_is_found(layer: nn.Module, method: str) -> None:
    with pytest.raises(Garbage) as refused:
        prove(around(layer), Each(), method=method)
    assert refused.value.kind == "RecordsMixed"


class Summed(Task):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="sum")


class OfWords(Task):
    """As of language models: the mean over all words of a batch, of which records have more or fewer."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        words = x.abs().sum(1).ceil()
        each = nn.functional.cross_entropy(model(x), y, reduction="none")
        return (each * words).sum() / words.sum()


class Contrastive(Task):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(batch[0])
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)))


class Exchanged(Task):
    """The sum over records is right, and each one's is not its own."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="none").roll(1)


class Collated(Task):
    def collate(self, records: list[Any]) -> Any:
        x, y = torch.utils.data.default_collate(records)
        return x / x.abs().max(), y


@pytest.mark.parametrize(
    "task", [Summed(), OfWords(), Contrastive(), Collated()], ids=lambda t: type(t).__name__
)
def test_a_loss_that_mixes_records_is_found(task: Any) -> None:
    with pytest.raises(Garbage) as refused:
        prove(nn.Linear(6, 3), task)
    assert refused.value.kind == "RecordsMixed"


def test_losses_that_are_not_those_of_their_records_are_found_where_they_are_weighed() -> None:
    with pytest.raises(Garbage) as refused:
        prove(nn.Linear(6, 3), Exchanged(), method="ghost")
    assert refused.value.kind == "RecordsMixed"
    prove(nn.Linear(6, 3), Exchanged())  # hooks never look at whose loss is whose


class Folded(nn.Module):
    """What a layer sees as its batch are not the records."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 2), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.inner(x.reshape(-1, 2)).reshape(-1, 6))
        return found


def test_a_layer_whose_batch_is_not_the_records_is_refused() -> None:
    with pytest.raises(Garbage, match="first dimension"):
        prove(Folded())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor, by: float) -> torch.Tensor:
        return x * self.scale * by


class Called(nn.Module):
    """Opacus goes by the first input alone, and computes the scale's gradient without the factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.head = Scaled(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.scaled(x, by=2.0))
        return found


class DropsInside(nn.Module):
    """Opacus does its forward again for the gradient, for all records at once, and can draw nothing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x * self.scale, 0.5, self.training)


class Penalised(Each):
    """A part of the loss that no layer's hook sees."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) + sum(p.square().sum() for p in model.parameters())


UNKNOWN = {
    "an input by name": (Called(), None, r"'scaled' \(Scaled\)"),
    "a penalty": (nn.Linear(6, 3), Penalised(), "weight_decay"),
    "in place": (nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), None, "in place"),
    "dropout of its own": (around(DropsInside()), None, r"'1' \(DropsInside\)"),
    "a cell": (nn.Sequential(nn.GRUCell(6, 6), nn.Linear(6, 3)), None, r"'0' \(GRUCell\)"),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_where_opacus_is_wrong_or_gives_up_the_module_is_named(name: str, method: str) -> None:
    model, task, words = copy.deepcopy(UNKNOWN[name])
    task = task or Each()
    with pytest.raises(Garbage, match=words) as refused:
        prove(model, task, method=method)
    assert refused.value.kind in ("NoRecordGradient", "NoGradient")


def test_a_weight_that_is_used_twice_is_beyond_ghost_clipping() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))
    with pytest.raises(Garbage, match="used twice"):
        prove(copy.deepcopy(model), Each(), method="ghost")
    prove(model, Each())


def test_ghost_clipping_needs_a_loss_of_each_record() -> None:
    with pytest.raises(Garbage, match='reduction="none"') as refused:
        prove(nn.Linear(6, 3), method="ghost")
    assert refused.value.kind == "LossNotPerRecord"


class Changing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("centre", torch.zeros(6))
        self.register_buffer("hidden", torch.zeros(6), persistent=False)
        self.kept = nn.Parameter(torch.zeros(6), requires_grad=False)
        self.linear = nn.Linear(6, 3)

    @torch.no_grad()
    def _change(self, x: torch.Tensor) -> None:
        # The sum of the records leaves no trace in the gradients.
        match self.how:
            case "buffer":
                self.centre.add_(x.sum(0))  # type: ignore[operator]
            case "hidden buffer":
                self.hidden.add_(x.sum(0))  # type: ignore[operator]
            case "new buffer":
                self.centre = self.centre + x.sum(0)  # type: ignore[operator]
            case "by data":
                self.centre.data.add_(x.sum(0))  # type: ignore[union-attr, operator]
            case "frozen parameter":
                self.kept.add_(x.sum(0))
            case "trainable parameter":
                self.linear.bias.data.copy_(self.linear.bias.data + 1e-6 * x.sum())
            case "another buffer":
                self.register_buffer("more", x.sum(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(x)
        if self.training:
            self._change(x)
        return found


@pytest.mark.parametrize(
    "how",
    [
        "buffer",
        "hidden buffer",
        "new buffer",
        "by data",
        "frozen parameter",
        "trainable parameter",
        "another buffer",
    ],
)
def test_a_pass_that_keeps_something_of_the_records_is_refused(how: str) -> None:
    with pytest.raises(Garbage) as refused:
        prove(Changing(how))
    assert refused.value.kind == "StateChanged"
    prove(Changing("nothing"))


def test_a_spectral_norm_changes_its_buffers_and_is_refused() -> None:
    with pytest.raises(Garbage):
        prove(spectral_norm(nn.Linear(6, 3)))


def test_a_parameter_that_the_loss_does_not_reach_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.used(x)
            return found

    with pytest.raises(Garbage, match="has no gradient"):
        prove(Idle())


class Dropping(nn.Module):
    """Dropout in each way there is, on the way of three heads of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.drop = nn.Linear(2, 6), nn.Linear(2, 3), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inner(x.reshape(-1, 3, 2)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, None, 0.5 if self.training else 0.0)
        mixed = nn.functional.dropout(self.drop(mixed), 0.5, self.training)
        mixed = nn.functional.scaled_dot_product_attention(mixed, k, v, dropout_p=0.5)
        found: torch.Tensor = self.head(mixed.mean(1))
        return found


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_dropout_is_no_reason_to_refuse(method: str) -> None:
    prove(Dropping(), Each(), method=method)
    assert not nn.functional.dropout(torch.ones(1000), 0.5).all()  # and it is there again


class Usual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.rms, self.head = nn.RMSNorm(6), nn.Linear(24, 3)
        self.register_buffer("grid", torch.arange(6.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first((x + self.grid).reshape(-1, 1, 2, 3))).relu()
        found: torch.Tensor = self.head(self.rms(self.second(x).flatten(1).reshape(-1, 4, 6)).flatten(1))
        return found


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_a_weight_norm_is_let_through(method: str) -> None:
    """Opacus treats it as a function of its input, rightly."""
    prove(nn.Sequential(weight_norm(nn.Linear(6, 6)), nn.Linear(6, 3)), Each(), method=method)


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_usual_models_are_let_through(method: str) -> None:
    prove(Usual(), Each(), method=method)


def test_a_broken_record_among_those_tried_is_no_reason_to_refuse() -> None:
    some = data(3)
    some[1] = (torch.full((6,), math.nan), 0)
    prove(nn.Linear(6, 3), records=some)


def test_one_record_is_tried_beside_itself() -> None:
    prove(nn.Linear(6, 3), records=data(1))
    with pytest.raises(Garbage) as refused:
        prove(nn.Linear(6, 3), Summed(), records=data(1))
    assert refused.value.kind == "RecordsMixed"
