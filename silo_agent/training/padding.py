"""A silo of lower rank: of each of LoRA's pairs it trains the first components; the others stay as the version has them.

They go on adding what they add, so the model is the job's whole. They have neither gradients nor a place in the optimizer,
and their part of an update is exactly zero.
"""

from collections.abc import Iterator, Mapping

import torch
from torch.nn.utils import parametrize

DIMENSION = {
    "lora_A": 0,
    "lora_embedding_A": 0,
    "lora_B": 1,
    "lora_embedding_B": 1,
}  # along which components lie


class Padded(torch.nn.Module):
    """The parametrization of one matrix: what trains is a view of the first components in `whole`'s own memory."""

    def __init__(self, whole: torch.Tensor, rank: int, dimension: int) -> None:
        super().__init__()
        self.whole, self._rank, self._dimension = whole.detach(), rank, dimension

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        others = self.whole.shape[self._dimension] - self._rank
        return torch.cat([first, self.whole.narrow(self._dimension, self._rank, others)], self._dimension)

    def right_inverse(self, _whole: torch.Tensor) -> torch.Tensor:
        return self.whole.narrow(self._dimension, 0, self._rank)


def pad(model: torch.nn.Module, rank: int) -> None:
    """Let `model`, on the device where it stays, train the first `rank` components of its pairs alone."""
    for full_name, parameter in list(model.named_parameters()):
        place, _, name = full_name.rpartition(".")
        dimension = next((DIMENSION[part] for part in place.split(".") if part in DIMENSION), None)
        if dimension is None or not parameter.requires_grad or parameter.shape[dimension] <= rank:
            continue
        one = Padded(parameter, rank, dimension)
        parametrize.register_parametrization(model.get_submodule(place), name, one, unsafe=True)


def wholes(model: torch.nn.Module) -> Mapping[str, tuple[str, torch.Tensor]]:
    """Of each parameter that is a part: the name and the values of what it is a part of, as without `pad`."""
    return dict(_wholes(model))


def _wholes(model: torch.nn.Module) -> Iterator[tuple[str, tuple[str, torch.Tensor]]]:
    for name, module in model.named_modules():
        if isinstance(module, Padded):
            stem = name.removesuffix(".0")
            yield f"{stem}.original", (stem.replace(".parametrizations.", "."), module.whole)
