"""Coverage-guided runs of the table: `python -m tests.fuzz.drive --seconds 60 [NAME ...]`, each target in a process.

libFuzzer watches what the table cannot: an input that takes more than TIMEOUT seconds, or a process that grows beyond
MEMORY. An input that breaks a contract is kept under build/fuzz/crashes/, named by its target; run again, it is tried
first. Needs `pip install -e .[fuzz]`.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

KEPT = Path("build/fuzz")
TIMEOUT = 20  # seconds for one input
MEMORY = 2048  # MiB of the whole process, torch and the server's rooms included
LONGEST = 256 * 1024  # bytes of one input
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


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_one(name: str, options: list[str]) -> None:
    """In a process of its own: libFuzzer never comes back."""
    import atheris

    with atheris.instrument_imports(include=OURS, enable_loader_override=False):
        from tests.fuzz.table import TARGETS
    from tests.fuzz.target import check

    target, corpus = TARGETS[name], Path(options[0])
    for number, data in enumerate(target.seeds()):  # made here: some name what only this process has
        (corpus / f"seed-{number}").write_bytes(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time libFuzzer's own way, half of the time the one that keeps the input of its kind."""
        random = Random(seed)
        return atheris.Mutate(data, most) if random.randint(0, 1) else target.shape(data, random)[:most]

    atheris.Setup([sys.argv[0], *options], lambda data: check(target, data), custom_mutator=change)
    atheris.Fuzz()


def run(name: str, seconds: int, seed: int) -> dict[str, object]:
    crashes = KEPT / "crashes" / slug(name)
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, kept in enumerate(crashes.iterdir()):
            (Path(corpus) / f"kept-{number}").write_bytes(kept.read_bytes())
        options = [
            corpus, f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}",
            f"-max_len={LONGEST}", f"-artifact_prefix={crashes}/", f"-seed={seed}", "-print_final_stats=1", "-verbosity=1",
        ]  # fmt: skip
        argv = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.drive", "--one", name, *options]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    told = done.stdout + done.stderr
    (KEPT / f"{slug(name)}.log").write_text(told)
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", told)
    grown = re.findall(r"cov: (\d+)", told)
    return {
        "target": name,
        "executions": int(counted[1]) if counted else 0,
        "edges": int(grown[-1]) if grown else 0,
        "broken": done.returncode != 0,
    }


def main() -> None:
    if "--one" in sys.argv[1:2]:
        run_one(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", help="targets; default: all")
    given = parser.parse_args()
    from tests.fuzz.table import TARGETS

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
