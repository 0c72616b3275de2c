"""Questions by what they ask for (TREC, of ANABRANCH_DATA) as token ids, and the first layers of a sentence encoder."""

import gzip
import shutil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoModel

from benchmarks.link.data import encoder
from benchmarks.strategies.data import folder

HERE = Path(__file__).parent
HELD = 500  # questions of a measurement
LENGTH, LAYERS = 16, 1  # tokens of a question, and layers of the encoder's six


def prepare(out: Path) -> None:
    """Records, base, job, scenario and comparison in one folder."""
    if not (out / "minilm").exists():
        out.mkdir(parents=True, exist_ok=True)
        _questions(out)
        _base(out / "minilm")
    shutil.copytree(HERE / "job", out / "job", dirs_exist_ok=True)
    for name in ("compare.toml", "scenario.toml"):
        shutil.copy(HERE / name, out / name)


def _questions(out: Path) -> None:
    """train.npz, validation.npz and test.npz: x int32 (n, LENGTH), 0 behind a question's end, y uint8 (n,)."""
    text = gzip.decompress((folder() / "trec" / "TREC.train.txt.gz").read_bytes()).decode("latin-1")
    lines = [line.partition(" ") for line in text.splitlines()]
    kinds = [kind.partition(":")[0] for kind, _, _ in lines]
    tokenizer = Tokenizer.from_file(str(encoder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=0)
    x = np.array([one.ids for one in tokenizer.encode_batch([line[2] for line in lines])], np.int32)
    y = np.array([sorted(set(kinds)).index(kind) for kind in kinds], np.uint8)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
    parts = np.split(order, [HELD, 2 * HELD])
    for name, part in zip(("validation", "test", "train"), parts, strict=True):
        np.savez(out / f"{name}.npz", x=x[part], y=y[part])


def _base(out: Path) -> None:
    model = AutoModel.from_pretrained(encoder(), add_pooling_layer=False)
    model.encoder.layer = model.encoder.layer[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(out)
