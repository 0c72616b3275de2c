"""Questions by what they ask for: a sentence encoder's first layer, LoRA beside its attention, a head trained whole."""

import numpy as np
import torch
from torch.utils.data import TensorDataset
from transformers import AutoModel

from silo_agent import Texts


class Classifier(torch.nn.Module):
    """Token ids, 0 where there are none any more, to a score for each kind."""

    def __init__(self, encoder, kinds):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, kinds)

    def forward(self, ids):
        there = (ids != 0).long()
        words = self.encoder(input_ids=ids, attention_mask=there).last_hidden_state
        weights = there.unsqueeze(-1).to(words.dtype)
        return self.head((words * weights).sum(1) / weights.sum(1).clamp(min=1))


class Questions:
    def __init__(self, kinds, length):
        self.kinds, self.length = kinds, length

    def model(self, base):
        return Classifier(AutoModel.from_pretrained(base, add_pooling_layer=False), self.kinds)

    def inputs(self):
        return Texts(self.length, "word_embeddings", first=101)

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        return _questions(data.path)

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        right = count = 0
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
        return {"accuracy": right / count, "num_examples": count}


def _questions(path):
    with np.load(path) as file:
        x, y = file["x"].astype(np.int64), file["y"].astype(np.int64)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
