"""20 Newsgroups for eight silos: `python data.py SOURCE FOLDER` writes one CSV file (text,label) for each, and test.csv.

SOURCE: 20news-bydate.tar.gz; the folder it unpacks to; or a folder with train.jsonl.gz and test.jsonl.gz, a line of
each {"group", "id", "text"}. Headers of posts, which name the group, are dropped.
"""

import argparse
import csv
import gzip
import json
import random
import tarfile
from collections import defaultdict
from pathlib import Path

TOPICS = {
    "comp-software": ["comp.graphics", "comp.os.ms-windows.misc", "comp.windows.x"],
    "comp-hardware": ["comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware"],
    "rec-vehicles": ["rec.autos", "rec.motorcycles"],
    "rec-sport": ["rec.sport.baseball", "rec.sport.hockey"],
    "sci": ["sci.crypt", "sci.electronics", "sci.med", "sci.space"],
    "misc-forsale": ["misc.forsale"],
    "talk-politics": ["talk.politics.guns", "talk.politics.mideast", "talk.politics.misc"],
    "religion": ["alt.atheism", "soc.religion.christian", "talk.religion.misc"],
}
LABELS = sorted(group for groups in TOPICS.values() for group in groups)
LENGTH = 2000  # characters of a post; the job reads fewer
LEAST = 50  # posts of a silo under --deal dirichlet; shares are drawn again until everyone has them


def posts(source, part):
    """(group, text) of every post of `part`, train or test."""
    if (source / f"{part}.jsonl.gz").exists():
        with gzip.open(source / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            found = [(row["group"], row["text"]) for row in map(json.loads, file)]
    elif source.is_dir():
        paths = sorted(path for path in source.glob(f"*-{part}/*/*") if path.is_file())
        found = [(path.parent.name, path.read_text("latin-1")) for path in paths]
    else:
        with tarfile.open(source) as archive:
            members = [one for one in archive if one.isfile() and f"-{part}/" in one.name]
            found = [
                (one.name.split("/")[-2], archive.extractfile(one).read().decode("latin-1"))
                for one in members
            ]
    if not found:
        raise SystemExit(f"{source}: no posts of {part}")
    bodies = [(group, text.replace("\r\n", "\n").partition("\n\n")[2]) for group, text in found]
    return [(group, " ".join(body.split())[:LENGTH]) for group, body in bodies if body.strip()]


def by_topic(rows):
    return {silo: [row for row in rows if row[0] in groups] for silo, groups in TOPICS.items()}


def by_chance(rows, alpha, seed):
    """The posts of every group in shares drawn from a Dirichlet distribution: `alpha` small, uneven."""
    chance = random.Random(seed)  # noqa: S311 - no secret: the same deal every time
    of_group = defaultdict(list)
    for row in rows:
        of_group[row[0]].append(row)
    while True:
        silos = {f"silo-{number}": [] for number in range(len(TOPICS))}
        for group in sorted(of_group):
            weights = [chance.gammavariate(alpha, 1.0) for _ in silos]
            owners = chance.choices(list(silos), weights, k=len(of_group[group]))
            for owner, row in zip(owners, of_group[group], strict=True):
                silos[owner].append(row)
        if min(map(len, silos.values())) >= LEAST:
            return silos


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows((text, LABELS.index(group)) for group, text in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deal", choices=["topic", "dirichlet"], default="topic")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    train = posts(told.source, "train")
    silos = by_topic(train) if told.deal == "topic" else by_chance(train, told.alpha, told.seed)
    told.folder.mkdir(parents=True, exist_ok=True)
    for silo, rows in silos.items():
        write(told.folder / f"{silo}.csv", rows)
        print(f"{silo}.csv: {len(rows)} posts of {len({group for group, _ in rows})} groups")
    write(told.folder / "test.csv", posts(told.source, "test"))


if __name__ == "__main__":
    main()
