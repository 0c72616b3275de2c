"""Texts made as vectors in the place of tokens': the model is entered behind the module that looks tokens up.

Nothing but the model is needed. What is trained begins as rows of its own table, of tokens drawn by chance: no text of
anybody, and no other model. What is made has no words; the same model takes it, whatever adapter it wears.
"""

from typing import Any

import torch
from torch import Tensor, nn

from silo_agent.training.inputs import Texts

PROMPT = 4  # vectors in front of every text, which all have in common: what is learned from call to call
STRIDE = 30.0  # deviations of the table in one unit of a latent: so far a step of the optimizer reaches
SHORTEST = 0.5  # of the length, at least, is there


class Passages:
    """As `inputs.Inputs`. A made text is (length, width); where nothing is there any more its vectors are zero.

    Hooks `model`: called with made texts, it is given ids of the same length, and its table's answer is replaced. Called
    with ids it does as ever. Raises ValueError for a model that has no such table.
    """

    def __init__(self, texts: Texts, model: nn.Module) -> None:
        self._texts, self._table = texts, _table(texts, model)
        self._made: Tensor | None = None  # what the model is being called with
        self._least = max(int(SHORTEST * texts.length), 1)
        model.register_forward_pre_hook(self._enter)
        self._table.register_forward_hook(self._replace)

    def generator(self) -> nn.Module:
        first = None if self._texts.first is None else self._rows(torch.tensor([self._texts.first]))
        return SoftPrompt(self._rows(self._tokens((self._prompt,))), first, self._unit)

    def latent(self, count: int, chance: torch.Generator) -> Tensor:
        """Rows of the table: (count, what the prompt leaves of the length, width)."""
        rest = self._texts.length - self._prompt - (self._texts.first is not None)
        return self._rows(self._tokens((count, rest), chance)) / self._unit

    def noise(self, count: int, chance: torch.Generator) -> Tensor:
        """Token ids (count, length), any of the vocabulary alike."""
        ids = self._tokens((count, self._texts.length), chance)
        if self._texts.first is not None:
            ids[:, 0] = self._texts.first
        return torch.where(self._there(count, chance), ids, self._texts.pad)

    def augment(self, inputs: Tensor, chance: torch.Generator) -> Tensor:
        """Made texts end somewhere in their second half; written ones stay as they are."""
        if not inputs.is_floating_point():
            return inputs
        ended: Tensor = inputs * self._there(len(inputs), chance).unsqueeze(-1).to(inputs.device)
        return ended

    @property
    def _weight(self) -> Tensor:
        table: Any = self._table
        weight: Tensor = table.weight.detach()
        return weight

    @property
    def _unit(self) -> float:
        return STRIDE * float(self._weight.std())

    @property
    def _prompt(self) -> int:
        """Less where texts are hardly longer."""
        return min(PROMPT, self._texts.length // 4)

    def _tokens(self, shape: tuple[int, ...], chance: torch.Generator | None = None) -> Tensor:
        """Ids; `pad` is none of them."""
        ids = torch.randint(len(self._weight) - 1, shape, generator=chance)
        return ids + (ids >= self._texts.pad)

    def _rows(self, ids: Tensor) -> Tensor:
        return self._weight[ids.to(self._weight.device)]

    def _there(self, count: int, chance: torch.Generator) -> Tensor:
        ends = torch.randint(self._least, self._texts.length + 1, (count, 1), generator=chance)
        return torch.arange(self._texts.length) < ends

    def _enter(self, model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made, pad = given[0], self._texts.pad
        self._made = made if made.is_floating_point() else None
        if self._made is None:
            return given
        return (torch.where(made.ne(0).any(-1), int(pad == 0), pad), *given[1:])

    def _replace(self, table: nn.Module, given: Any, found: Tensor) -> Tensor:
        made, self._made = self._made, None
        if made is None:
            return found
        if found.shape != made.shape:
            raise ValueError(
                f"{self._texts.embedding!r} gave {tuple(found.shape)} for texts of shape {tuple(made.shape[:2])}, "
                f"not {tuple(made.shape)}"
            )
        return torch.where(made.ne(0).any(-1, keepdim=True), made, found)


class SoftPrompt(nn.Module):
    """Latents (n, rest, width) → texts (n, length, width): the first token, the prompt, and the latents themselves."""

    first: Tensor | None

    def __init__(self, prompt: Tensor, first: Tensor | None, unit: float) -> None:
        super().__init__()
        self.prompt, self.unit = nn.Parameter(prompt / unit), unit
        self.register_buffer("first", first)

    def forward(self, latent: Tensor) -> Tensor:
        made = [self.prompt.expand(len(latent), -1, -1) * self.unit, latent * self.unit]
        if self.first is not None:
            made.insert(0, self.first.expand(len(latent), -1, -1))
        return torch.cat(made, dim=1)


def _table(texts: Texts, model: nn.Module) -> nn.Module:
    end = texts.embedding
    found: list[nn.Module] = [
        module for name, module in model.named_modules() if name == end or name.endswith(f".{end}")
    ]
    if len(found) != 1:
        have = sorted(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
        raise ValueError(
            f"inputs() names the embedding {end!r}, and the model has {len(found)} modules of that name; "
            f"its embeddings are {', '.join(have) or 'none'}"
        )
    weight = getattr(found[0], "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError(f"inputs() names the embedding {end!r}, which is no table of (tokens, width)")
    for what, token in (("pad", texts.pad), ("first", texts.first)):
        if token is not None and not 0 <= token < len(weight):
            raise ValueError(f"inputs() says {what} = {token}, and the table has {len(weight)} tokens")
    return found[0]
