"""The data of examples/text-lora: from each form in which 20 Newsgroups comes, the same files; every post at one silo."""

import csv
import gzip
import json
import runpy
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "text-lora" / "data.py"
GROUPS: list[str] = runpy.run_path(str(SCRIPT))["LABELS"]
POSTS = 40  # of a group, in train


def text(group: str, number: int) -> str:
    return f"From: someone\r\nNewsgroups: {group}\r\n\r\nPost {number}, café.\n\n{'and so on ' * 300}"


@pytest.fixture(params=["archive", "folder", "lines"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small 20 Newsgroups, as users may have it."""
    folder = tmp_path / "unpacked"
    for part, count in (("train", POSTS), ("test", 2)):
        rows = [(group, f"{10_000 + number}") for group in GROUPS for number in range(count)]
        for group, name in rows:
            path = folder / f"20news-bydate-{part}" / group / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(group, int(name)), "latin-1", newline="")
        lines = [json.dumps({"group": g, "id": name, "text": text(g, int(name))}) for g, name in rows]
        (tmp_path / "lines").mkdir(exist_ok=True)
        (tmp_path / "lines" / f"{part}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        archive.add(folder, arcname="")
    return tmp_path / {"folder": "unpacked"}.get(request.param, request.param)


def made(source: Path, out: Path, *more: str) -> dict[str, list[tuple[str, int]]]:
    subprocess.run([sys.executable, str(SCRIPT), str(source), str(out), *more], check=True)
    found = {}
    for path in out.iterdir():
        with path.open(encoding="utf-8", newline="") as file:
            found[path.stem] = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]
    return found


def test_every_form_gives_the_same_silos_by_topic(source: Path, tmp_path: Path) -> None:
    silos = made(source, tmp_path / "out")
    test = silos.pop("test")
    assert len(silos) == 8
    assert {label for _, label in silos["sci"]} == {GROUPS.index(name) for name in GROUPS if "sci." in name}
    whole = [row for rows in silos.values() for row in rows]
    assert Counter(label for _, label in whole) == dict.fromkeys(range(20), POSTS)
    assert Counter(label for _, label in test) == dict.fromkeys(range(20), 2)
    assert {said[:18] for said, _ in test} == {"Post 10000, café. ", "Post 10001, café. "}
    assert max(len(said) for said, _ in whole) == 2000


def test_by_chance_every_post_is_at_one_silo_and_a_seed_is_a_deal(source: Path, tmp_path: Path) -> None:
    told = ["--deal", "dirichlet", "--alpha", "0.3", "--seed"]
    first, again, other = (made(source, tmp_path / name, *told, name[0]) for name in ("5a", "5b", "6"))
    assert first == again != other
    sizes = Counter(label for name, rows in first.items() if name != "test" for _, label in rows)
    assert sizes == dict.fromkeys(range(20), POSTS)
    assert min(len(rows) for name, rows in first.items() if name != "test") >= 50
    assert min(len({label for _, label in rows}) for rows in first.values()) < 20
