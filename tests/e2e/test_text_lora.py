"""The example that adapts a sentence encoder, tried with a tiny one made here."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from silo_agent.main import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "text-lora"
WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "book"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A base as it comes: weights of an encoder without a head, and its tokenizer."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=5 + len(WORDS), **sizes)).save_pretrained(folder)
    return folder


def test_the_example_runs_and_sends_its_adapter(encoder: Path, tmp_path: Path) -> None:
    rows = [
        f"{' '.join(words)},{int(words[0] in WORDS[:3])}" for words in product(WORDS[:6], *[WORDS[6:]] * 4)
    ]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    given = ["--data", str(tmp_path / "texts.csv"), "--base", str(encoder), "--dir", str(tmp_path / "silo")]
    done = CliRunner().invoke(app, ["try", str(EXAMPLE), *given, "--steps", "5", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    said = json.loads(done.stdout)
    assert said["steps"] == 5
    whole = sum(one.numel() for one in BertModel.from_pretrained(encoder).parameters())
    assert said["update_bytes"] < 4 * whole / 2
    assert said["norm"] > 0
