"""Make what silos bind: token ids of posts, dealt by topic.

    python prepare.py POSTS.jsonl.gz ENCODER OUT --silos 8

POSTS has a line of JSON for each post: {"group": its topic, "text": with headers up to the first blank line}. ENCODER is the
folder of the encoder, for its tokenizer. Writes OUT/silo-0.npz and so on; topics go round, so that a silo has few of them.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

TOKENS = 64


def posts(path):
    """Texts without their headers, and topics as numbers, in the order of their names."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    names = sorted({record["group"] for record in records})
    texts = [record["text"].partition("\n\n")[2].strip() for record in records]
    return texts, np.array([names.index(record["group"]) for record in records], np.uint8)


def encode(texts, encoder):
    """Token ids of shape (n, TOKENS), 0 behind a text's end."""
    tokenizer = Tokenizer.from_file(str(Path(encoder) / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0)
    return np.array([one.ids for one in tokenizer.encode_batch(texts)], np.int32)


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("posts", type=Path)
    asked.add_argument("encoder", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--silos", type=int, default=8)
    said = asked.parse_args()
    texts, topics = posts(said.posts)
    ids = encode(texts, said.encoder)
    said.out.mkdir(parents=True, exist_ok=True)
    for silo in range(said.silos):
        mine = topics % said.silos == silo
        np.savez(said.out / f"silo-{silo}.npz", x=ids[mine], y=topics[mine])
        print(f"silo-{silo}.npz: {int(mine.sum())} posts of {len(np.unique(topics[mine]))} topics")


if __name__ == "__main__":
    main()
