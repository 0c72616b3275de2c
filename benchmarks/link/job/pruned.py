"""LoRA that was pruned before training, what one would do without a sparse link: an eighth of the pairs' entries, drawn
once, the same at every silo and for good, and the head whole."""

import math

import torch
from task import Posts
from torch.nn import functional

RANK, ALPHA, KEPT = 16, 32.0, 8  # every KEPT-th entry in the mean
TARGETS = ("query", "value")


class Pair(torch.nn.Module):
    """A linear layer and, added to it, B A x, where all but `count` entries of A and B stay zero."""

    def __init__(self, whole, chance):
        super().__init__()
        self.whole = whole
        down, up = whole.in_features, whole.out_features
        size = RANK * (down + up)
        count = size // KEPT
        self.register_buffer("places", torch.randperm(size, generator=chance)[:count], persistent=False)
        start = (torch.rand(count, generator=chance) * 2 - 1) * math.sqrt(KEPT / down)
        self.entries = torch.nn.Parameter(torch.where(self.places < RANK * down, start, 0.0))

    def forward(self, x):
        down, up = self.whole.in_features, self.whole.out_features
        dense = torch.zeros(RANK * (down + up), device=x.device).scatter(0, self.places, self.entries)
        a, b = dense[: RANK * down].view(RANK, down), dense[RANK * down :].view(up, RANK)
        return self.whole(x) + ALPHA / RANK * functional.linear(functional.linear(x, a), b)


class Pruned:
    posts = Posts()
    dataset, loss, evaluate = posts.dataset, posts.loss, posts.evaluate

    def model(self, base):
        model = self.posts.model(base)
        model.encoder.requires_grad_(False)
        chance = torch.Generator().manual_seed(0)
        for module in list(model.encoder.modules()):
            for name in [name for name, _ in module.named_children() if name in TARGETS]:
                setattr(module, name, Pair(getattr(module, name), chance))
        return model
