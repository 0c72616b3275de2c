"""Coverage-guided runs of the table: `python -m tests.fuzz.drive --seconds 60 [NAME ...]`, one target after another.

libFuzzer watches what the table cannot: an input that takes more than TIMEOUT seconds, or a process that grows beyond
MEMORY. An input that breaks a contract is kept under build/fuzz/crashes/, in a folder of its target; in the next run it
is tried first. Needs `pip install -e .[fuzz]`.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

from tests.fuzz import scratch
from tests.fuzz.target import Target, check

OURS = [
    "anabranch",
    "server",
    "silo_agent",
    "auditor",
    "console",
    "packaging",
    "rfc8785",
    "tomllib",
    "tarfile",
]

with atheris.instrument_imports(include=OURS, enable_loader_override=False):
    from tests.fuzz.table import TARGETS

KEPT = Path("build/fuzz")
TIMEOUT = 20  # seconds for one input
MEMORY = 2048  # MiB of the whole process, torch and the server's rooms included
LONGEST = 256 * 1024  # bytes of one input


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fuzz(target: Target, corpus: Path, options: list[str]) -> None:
    """In a process of its own: libFuzzer never comes back."""
    with atheris.instrument_imports(
        include=OURS, enable_loader_override=False
    ):  # torch, only where it is needed
        seeds = target.seeds()  # made here: some name what only this process has
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time libFuzzer's own way, half of the time the one that keeps the input of its kind."""
        random = Random(seed)
        return atheris.Mutate(data, most) if random.randint(0, 1) else target.shape(data, random)[:most]

    atheris.Setup(
        [sys.argv[0], str(corpus), *options], lambda data: check(target, data), custom_mutator=change
    )
    atheris.Fuzz()


def run(name: str, seconds: int, seed: int) -> dict[str, object]:
    crashes = KEPT / "crashes" / slug(name)
    crashes.mkdir(parents=True, exist_ok=True)
    log = KEPT / f"{slug(name)}.log"
    options = [
        f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}",
        f"-artifact_prefix={crashes}/", f"-seed={seed}", "-print_final_stats=1",
    ]  # fmt: skip
    work = Path(
        tempfile.mkdtemp(prefix="fuzz-", dir=scratch.place)
    )  # of the child, which has no time to clean up
    corpus = work / "corpus"
    corpus.mkdir()
    for number, kept in enumerate(crashes.iterdir()):
        (corpus / f"kept-{number}").write_bytes(kept.read_bytes())
    child = os.fork()
    if child == 0:
        scratch.place = work
        into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(into, 1)
        os.dup2(into, 2)
        fuzz(TARGETS[name], corpus, options)
        sys.exit(70)
    _, status = os.waitpid(child, 0)
    shutil.rmtree(work, ignore_errors=True)
    told = log.read_text("utf-8", "replace")
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", told)
    grown = re.findall(r"cov: (\d+)", told)
    return {
        "target": name,
        "executions": int(counted[1]) if counted else 0,
        "edges": int(grown[-1]) if grown else 0,
        "broken": status != 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", help="targets; default: all")
    given = parser.parse_args()
    broken = []
    for name in given.names or TARGETS:
        found = run(name, given.seconds, given.seed)
        print(json.dumps(found), flush=True)
        if found["broken"]:
            broken.append(name)
    if broken:
        sys.exit(f"broken: {', '.join(broken)}; inputs in {KEPT / 'crashes'}, what was said in {KEPT}/*.log")


if __name__ == "__main__":
    main()
