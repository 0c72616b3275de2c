"""Posts by topic: a pretrained sentence encoder, LoRA beside its attention, and a head that is trained whole."""

import numpy as np
import torch
from torch.utils.data import TensorDataset
from transformers import AutoModel


class Classifier(torch.nn.Module):
    """Token ids, 0 where there are none any more, to a score for each topic.

    Features of one length and a head of zeros: what silos with other topics learn in a few steps can be added up.
    """

    def __init__(self, encoder, topics):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, topics)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, ids):
        there = (ids != 0).long()
        words = self.encoder(input_ids=ids, attention_mask=there).last_hidden_state
        weights = there.unsqueeze(-1).to(words.dtype)
        mean = (words * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.head(torch.nn.functional.layer_norm(mean, mean.shape[1:]))


class Posts:
    def __init__(self, topics: int = 20) -> None:
        self.topics = topics

    def model(self, base):
        # Without dropout, and in the form of attention that is fastest on processors: runs are short.
        settings = {
            "attn_implementation": "eager",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        encoder = AutoModel.from_pretrained(base, add_pooling_layer=False, **settings)
        return Classifier(encoder, self.topics)

    def dataset(self, data, split):
        """A silo's records are all for training; `test` and `validation` are files no silo has."""
        with np.load(data.path) as file:
            x, y = file["x"].astype(np.int64), file["y"].astype(np.int64)
        return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))

    def loss(self, model, batch):
        x, y = batch
        with torch.autocast(x.device.type, torch.bfloat16):  # a third faster where the processor has it
            scores = model(x)
        return torch.nn.functional.cross_entropy(scores.float(), y)

    def evaluate(self, model, batches):
        right = count = 0
        for x, y in batches:
            with torch.autocast(x.device.type, torch.bfloat16):
                scores = model(x)
            right += int((scores.argmax(1) == y).sum())
            count += len(y)
        return {"accuracy": right / count, "num_examples": count}
