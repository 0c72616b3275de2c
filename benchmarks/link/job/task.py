"""Posts by topic: a pretrained sentence encoder, LoRA beside its attention, and a head that is trained whole."""

import numpy as np
import torch
from torch.utils.data import TensorDataset
from transformers import AutoModel


class Classifier(torch.nn.Module):
    """Token ids, 0 where there are none any more, to a score for each topic."""

    def __init__(self, encoder, topics):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, topics)

    def forward(self, ids):
        there = (ids != 0).long()
        words = self.encoder(input_ids=ids, attention_mask=there).last_hidden_state
        weights = there.unsqueeze(-1).to(words.dtype)
        return self.head((words * weights).sum(1) / weights.sum(1).clamp(min=1))


class Posts:
    def __init__(self, topics: int = 20) -> None:
        self.topics = topics

    def model(self, base):
        return Classifier(AutoModel.from_pretrained(base, add_pooling_layer=False), self.topics)

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        with np.load(data.path) as file:
            x, y = file["x"].astype(np.int64), file["y"].astype(np.int64)
        return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, batches):
        right = count = 0
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
        return {"accuracy": right / count, "num_examples": count}
