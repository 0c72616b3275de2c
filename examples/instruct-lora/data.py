"""Instructions for the example, made up: `python data.py FOLDER` writes one file for each silo, of one kind each."""

import json
import random
import sys
from pathlib import Path

KINDS = {
    "reverse": ("Write it backwards.", lambda word: word[::-1]),
    "capitals": ("Write it in capitals.", str.upper),
    "twice": ("Write it twice.", lambda word: word + word),
}


def write(folder: Path, rows: int = 400) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (instruction, answer) in KINDS.items():
        chance = random.Random(kind)  # noqa: S311 - no secret: the same rows every time
        with open(folder / f"{kind}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(rows):
                word = "".join(chance.choices("abcdefgh", k=chance.randint(3, 6)))
                row = {"instruction": instruction, "input": word, "output": answer(word)}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
