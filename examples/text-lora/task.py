"""Classes of short texts, by a transformers encoder from a folder: the job file says what of it trains."""

import csv

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Texts:
    def __init__(self, classes: int = 2, words: int = 128) -> None:
        self.classes, self.words = classes, words

    def model(self, base):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=self.classes)

    def dataset(self, data, split):
        with open(data.path, encoding="utf-8", newline="") as file:
            rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]
        return [row for row in rows if data.split(row[0]) == split]

    def collate(self, rows):
        texts, labels = zip(*rows, strict=True)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.words, return_tensors="pt"
        )
        return dict(batch, labels=torch.tensor(labels))

    def loss(self, model, batch):
        return model(**batch).loss

    def evaluate(self, model, batches):
        correct, count = 0, 0
        for batch in batches:
            correct += int((model(**batch).logits.argmax(1) == batch["labels"]).sum())
            count += len(batch["labels"])
        return {"accuracy": correct / count}
