"""Whether a model can be revived at all: tried once with the task's inputs, before any silo is heard."""

from typing import Any

import torch
from torch import Tensor, nn

from reviver.inputs import Inputs, Pictures
from reviver.teachers import Network
from reviver.texts import Passages
from silo_agent.training.inputs import Images, Texts
from silo_agent.training.task import Garbage, Task

TRIED = 2  # inputs


class Unsupported(Exception):
    """The message says what is missing; `why` in a word: the type of an error, or a name."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(f"this job cannot be revived: {message}")
        self.why = why


def inputs_of(task: Task, model: nn.Module) -> Inputs:
    """What the task says of its inputs. Raises Unsupported where it says nothing, or what is not so of the model; Garbage
    for an answer that is neither kind."""
    say = getattr(task, "inputs", None)
    if say is None:
        raise Unsupported("no_inputs", "its task has no method inputs(), which says what its model takes")
    said: Any = say()
    if isinstance(said, Images):
        return Pictures(said)
    if isinstance(said, Texts):
        try:
            return Passages(said, model)
        except ValueError as error:
            raise Unsupported("no_embedding", str(error)) from error
    if isinstance(said, Inputs):
        return said
    raise Garbage(
        "NotInputs", f"inputs() returned {type(said).__name__}, not silo_agent.Images or Texts", say
    )


def tried(network: Network, inputs: Inputs) -> None:
    """Raises Unsupported, and what the task's own inputs raise."""
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        made = inputs.generator()(inputs.latent(TRIED, chance))
    _answer(network, inputs.noise(TRIED, chance).to(network.device))
    if not _answer(network, inputs.augment(made, chance).to(network.device)).requires_grad:
        raise Unsupported("no_gradient", "its scores do not depend smoothly on what the generator makes")


def _answer(network: Network, inputs: Tensor) -> Tensor:
    try:
        scores = network(network.initial(), inputs)
    except MemoryError:
        raise
    except Exception as error:
        name = type(error).__name__
        raise Unsupported(
            name, f"in evaluation mode it does not take the task's inputs ({name}: {error})"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != TRIED or scores.shape[1] < 2:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise Unsupported(
            "no_classes", f"scores over classes are ({TRIED}, classes) for {TRIED} inputs, not {found}"
        )
    return scores
