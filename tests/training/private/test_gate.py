"""What cannot be trained with privacy is refused by what it is, before anything is computed."""

from typing import Any

import pytest
import torch
from torch import nn

from silo_agent.training.task import Garbage
from tests.training.private.proving import Channels, Task, around, frozen, prove

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:Lazy modules")


BATCHED = {
    "BatchNorm1d": nn.BatchNorm1d(6),
    "BatchNorm1d without statistics": nn.BatchNorm1d(6, track_running_stats=False),
    "BatchNorm1d without parameters": nn.BatchNorm1d(6, affine=False),
    "BatchNorm1d with neither": nn.BatchNorm1d(6, affine=False, track_running_stats=False),
    "BatchNorm1d, frozen": frozen(nn.BatchNorm1d(6)),
    "BatchNorm2d": Channels(nn.BatchNorm2d(6), 6, 1, 1),
    "BatchNorm3d": Channels(nn.BatchNorm3d(6), 6, 1, 1, 1),
    "SyncBatchNorm": nn.SyncBatchNorm(6),
    "LazyBatchNorm1d": nn.LazyBatchNorm1d(),
    "LazyBatchNorm2d": Channels(nn.LazyBatchNorm2d(), 6, 1, 1),
}


@pytest.mark.parametrize("layer", BATCHED.values(), ids=BATCHED)
def test_batch_norm_of_every_kind_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(Garbage, match=r"module '1(\.layer)?' \(\w*BatchNorm\w*\).*GroupNorm") as refused:
        prove(around(layer))
    assert refused.value.kind == "NotPrivate"


@pytest.mark.parametrize("affine", [True, False])
def test_an_instance_norm_with_statistics_is_refused(affine: bool) -> None:
    layer = nn.InstanceNorm1d(2, affine=affine, track_running_stats=True)
    with pytest.raises(Garbage, match=r"InstanceNorm1d\) keeps statistics.*track_running_stats=False"):
        prove(around(Channels(layer, 2, 3)))
    prove(around(Channels(nn.InstanceNorm1d(2, affine=affine), 2, 3)))


class Own(nn.Module):
    """A norm of the job's own, with its statistics in a buffer of the usual name."""

    def __init__(self, buffer: str) -> None:
        super().__init__()
        self.register_buffer(buffer, torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked", "running_median"])
def test_statistics_are_refused_by_the_names_of_their_buffers(buffer: str) -> None:
    with pytest.raises(Garbage, match=f"module '1' .Own. keeps statistics of records .{buffer}"):
        prove(around(Own(buffer)))


RECURRENT = {
    "DPLSTM": nn.LSTM(6, 6, batch_first=True),
    "DPGRU": nn.GRU(6, 6, batch_first=True),
    "DPRNN": nn.RNN(6, 6, batch_first=True),
    "DPMultiheadAttention": nn.MultiheadAttention(6, 2),
    "torch.nn.Embedding": nn.EmbeddingBag(6, 6),
}


@pytest.mark.parametrize("other", RECURRENT)
def test_a_layer_without_gradients_of_records_is_refused_with_its_replacement(other: str) -> None:
    with pytest.raises(Garbage, match=f"module '1'.*: take .*{other}"):
        prove(around(RECURRENT[other]))


def test_a_layer_norm_without_bias_is_beyond_opacus_where_it_trains() -> None:
    with pytest.raises(Garbage, match=r"module '1' \(LayerNorm\): take .*RMSNorm"):
        prove(around(nn.LayerNorm(6, bias=False)))
    prove(around(frozen(nn.LayerNorm(6, bias=False))))


class Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x.unsqueeze(1))[0][:, -1]
        return found


def test_such_a_layer_may_stay_where_it_is_frozen_or_opacus_own() -> None:
    from opacus.layers import DPLSTM

    prove(around(Last(frozen(nn.GRU(6, 6, batch_first=True)))))
    prove(around(Last(DPLSTM(6, 6, batch_first=True))))


def test_parameters_that_cannot_be_private_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with pytest.raises(Garbage, match=r"parameter '1.weight' is trainable and not in the task's optimizer"):
        prove(model, optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1))
    stray = nn.Parameter(torch.zeros(3))
    with pytest.raises(Garbage, match="not a trainable parameter of the model"):
        prove(model, optimizer=torch.optim.SGD([*model.parameters(), stray], lr=0.1))
    with pytest.raises(Garbage, match=r"parameter '0.weight' is of torch.bfloat16"):
        prove(nn.Sequential(nn.Linear(6, 3, dtype=torch.bfloat16)))
    with pytest.raises(Garbage, match=r"'1.weight' has no shape yet"):
        prove(nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3)))


class Temperature(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


def test_one_number_has_no_layer_of_its_own_to_clip() -> None:
    """Opacus would take one norm over all records."""
    model = nn.Sequential(nn.Linear(6, 3), Temperature())
    with pytest.raises(Garbage, match=r"'1.value' is a single number"):
        prove(model, clipping="per_layer")
    prove(model)
    prove(nn.Sequential(nn.Linear(6, 3), Temperature(1)), clipping="per_layer")


def test_a_sampler_of_the_task_is_refused() -> None:
    class Sampled(Task):
        def sampler(self, dataset: Any, generator: Any) -> Any:
            return range(len(dataset))

    with pytest.raises(Garbage, match=r"sampler\(\): leave it out"):
        prove(nn.Linear(6, 3), Sampled())
