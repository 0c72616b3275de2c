"""A generator learns to make inputs that teachers are sure about (FedRevive §2.2; data-free meta-distillation).

Every call starts from the meta-learned generator with fresh latents and class embeddings, takes a few steps on the losses
below, keeps the best inputs it saw, and moves the generator towards where the call ended (Reptile).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reviver.inputs import Inputs
from reviver.pool import Batch
from reviver.teachers import Network, Teacher, Values, shares

EMBEDDING = 0.2  # weight of the class in the latent
FEATURES, ONE_HOT, ADVERSARIAL = 0.1, 1.0, 0.1  # weights of the losses
GENERATOR_LR, LATENT_LR, BETAS = 3e-3, 1e-2, (0.5, 0.999)


@dataclass(frozen=True)
class Judged:
    """What one call is made for."""

    teachers: Sequence[Teacher]
    labels: Tensor  # (n,)
    weights: Tensor  # (teachers, n): whose word counts for a label; the columns sum to 1
    student: Values | None  # the head, once inputs on which it disagrees are looked for


class Synthesis:
    def __init__(self, network: Network, inputs: Inputs, chance: torch.Generator) -> None:
        self._network, self._inputs, self._chance = network, inputs, chance
        self._generator = inputs.generator().to(network.device)
        self._meta = torch.optim.Adam(self._generator.parameters(), lr=GENERATOR_LR, betas=BETAS)

    def make(
        self, teachers: Sequence[Teacher], size: int, steps: int, student: Values | None
    ) -> Batch | None:
        """`size` inputs the teachers are sure about; None where no step gave finite losses."""
        judged = self._draw(teachers, size, student)
        classes = len(teachers[0].proportions)
        latent = self._latent(size).requires_grad_()
        embedding = self._latent(classes).requires_grad_()
        generator = copy.deepcopy(self._generator)
        groups = [
            {"params": list(generator.parameters()), "lr": GENERATOR_LR},
            {"params": [latent, embedding], "lr": LATENT_LR},
        ]
        optimizer = torch.optim.Adam(groups, betas=BETAS)
        best, lowest = None, float("inf")
        for _ in range(steps):
            made = generator(latent + EMBEDDING * embedding[judged.labels])
            loss = self._loss(made, judged)
            if (value := loss.item()) < lowest:  # never so for NaN
                best, lowest = made.detach(), value
            if not bool(loss.isfinite()):
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if best is None or not bool(best.isfinite().all()):
            return None
        self._learn(generator)
        return Batch(best, judged.labels.cpu(), frozenset(one.silo for one in teachers))

    def _latent(self, count: int) -> Tensor:
        return self._inputs.latent(count, self._chance).to(self._network.device)

    def _draw(self, teachers: Sequence[Teacher], size: int, student: Values | None) -> Judged:
        """Labels of all classes alike; for each, a teacher counts by its share of the class."""
        of_each = shares(teachers)
        labels = torch.randint(0, of_each.shape[1], (size,), generator=self._chance)
        weights, device = of_each[:, labels], self._network.device
        return Judged(teachers, labels.to(device), weights.to(device), student)

    def _loss(self, made: Tensor, judged: Judged) -> Tensor:
        """Per input: features like those training saw, a label the teacher is sure of, and a head that is not."""
        seen = self._inputs.augment(made, self._chance)
        doubts = None if judged.student is None else self._network(judged.student, seen)
        total = torch.zeros((), device=made.device)
        for teacher, weights in zip(judged.teachers, judged.weights, strict=True):
            scores = self._network(teacher.values, seen)
            total = total + FEATURES * weights.sum() * self._network.strangeness(teacher.values)
            each = ONE_HOT * functional.cross_entropy(scores, judged.labels, reduction="none")
            if doubts is not None:
                each = each - ADVERSARIAL * _disagreement(scores, doubts)
            total = total + (weights * each).sum()
        return total / len(made)

    def _learn(self, generator: nn.Module) -> None:
        """Reptile: the step this call took is the meta-generator's gradient, with its sign turned."""
        for kept, moved in zip(self._generator.parameters(), generator.parameters(), strict=True):
            kept.grad = kept.detach() - moved.detach()
        self._meta.step()


def _disagreement(scores: Tensor, doubts: Tensor) -> Tensor:
    """KL(teacher ‖ head) of each input, where both give it the same label."""
    teacher, head = functional.log_softmax(scores, 1), functional.log_softmax(doubts, 1)
    divergence = functional.kl_div(head, teacher, reduction="none", log_target=True).sum(1)
    return divergence * (scores.argmax(1) == doubts.argmax(1))
