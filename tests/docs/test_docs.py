"""The papers agree with the code: a tour that is not tested will lie."""

import re
from pathlib import Path

import pytest

from server.gaps import Gap

ROOT = Path(__file__).parents[2]
PAPERS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_path_named_exists(paper: str) -> None:
    text = (ROOT / paper).read_text()
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\.importlinter)(?:::\w+)?`", text))
    assert named, "names no path at all"
    ours = {
        path for path in named if not path.startswith(("build/", "agent/", "keys/"))
    }  # the rest is made by the programs
    missing = sorted(path for path in ours if not (ROOT / path).exists())
    assert not missing


def test_every_test_named_exists() -> None:
    for path, name in re.findall(r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "ARCHITECTURE.md").read_text()):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_crash_table_has_every_gap() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert rows == [gap.value for gap in Gap]


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "ARCHITECTURE.md").read_text().rpartition("## Decisions")[2]
    for path in sorted((ROOT / "docs/adr").glob("*.md")):
        number = int(path.name[:4])
        assert re.search(rf"\b{number} \w", listed), path.name
        assert path.read_text().startswith(f"# {number}. ") or "# " in path.read_text()


def test_every_command_of_the_readme_exists() -> None:
    """Programs and subcommands; the reference is generated from their help and compared in `make check`."""
    known = set(
        re.findall(
            r"^## `(anabranch[\w-]*(?: [a-z]+)+)", (ROOT / "docs/commands.md").read_text(), re.MULTILINE
        )
    )
    used = re.findall(
        r"^ {4}(?:\.venv/bin/)?(anabranch[\w-]*(?: [a-z]+)+)", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(used) > 10
    assert not [command for command in used if not any(command.startswith(name) for name in known)]


def test_the_readmes_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ {4}make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets
