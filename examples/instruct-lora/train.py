"""One adapter from instructions that lie at several silos: LoRA by `peft`, trained by `transformers.Trainer`.

The base model never travels, its adapter does. Four lines make it federated; they are marked.
"""

import hashlib
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from silo_agent import federated  # 1

# A model of the hub instead of the toy below: its folder, the same path at the submitter and at every silo, below /opt,
# where a job's code may read; and the SHA-256 of its model.safetensors, for the base has to be the same everywhere.
BASE, BASE_SHA256 = "", ""
LORA = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
LENGTH = 64  # tokens of an instruction with its answer


def base():
    """The model, and its tokens of a text."""
    if BASE:
        with open(Path(BASE) / "model.safetensors", "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == BASE_SHA256, "another base model"
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        return AutoModelForCausalLM.from_pretrained(BASE), lambda text: tokenizer(text).input_ids
    toy = GPT2Config(
        vocab_size=128,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,  # what is drawn stays as it is, so it has to be worth adapting
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(toy), lambda text: list(text.encode())


class Instructions:
    """Rows of one split, as tokens; the loss counts the answer alone."""

    def __init__(self, data, split):
        rows = map(json.loads, data.path.read_text("utf-8").splitlines())
        self.rows = [self.encoded(row) for row in rows if data.split(row["input"]) == split]

    def encoded(self, row):
        question = tokens(f"{row['instruction']}\n{row['input']}\n")
        answer = tokens(row["output"] + "\n")
        return {"input_ids": question + answer, "labels": [-100] * len(question) + answer}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def padded(rows):
    length = min(max(len(row["labels"]) for row in rows), LENGTH)
    empty = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([(row[name] + [pad] * length)[:length] for row in rows])
        for name, pad in empty.items()
    }
    return batch | {
        "attention_mask": (torch.arange(length) < torch.tensor([[len(r["labels"])] for r in rows])).long()
    }


def evaluate(model, split):
    rows = Instructions(fl.data, split)
    device = next(model.parameters()).device
    total = 0.0
    for batch in DataLoader(rows, batch_size=16, collate_fn=padded):
        answers = {name: tensor.to(device) for name, tensor in batch.items()}
        total += model(**answers).loss.item() * len(batch["labels"])
    return {"loss": total / len(rows), "num_examples": len(rows)}


model, tokens = base()
model = get_peft_model(model, LORA)
args = TrainingArguments(
    per_device_train_batch_size=16,
    learning_rate=1e-2,
    lr_scheduler_type="constant",  # a schedule would begin again with every cycle
    bf16=torch.cuda.is_available(),
    report_to=[],
)
with federated(model, evaluate=evaluate) as fl:  # 2
    trainer = Trainer(model, args, data_collator=padded, train_dataset=Instructions(fl.data, "train"))
    for cycle in fl:  # 3
        cycle.train(trainer)  # 4
