"""Write `docs/commands.md` from the programs' own help; with --check, fail when it differs.

    python docs/generate_commands.py [--check]
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["TERM"] = "dumb"
os.environ["COLUMNS"] = "100"

import typer

from auditor.main import app as audit
from console.main import app as console
from server.main import app as server
from silo_agent.main import app as silo

PAGE = Path(__file__).parent / "commands.md"
PROGRAMS = {"anabranch": console, "anabranch-server": server, "anabranch-silo": silo, "anabranch-audit": audit}
INTRO = """# Commands

Generated from the programs' help by `python docs/generate_commands.py`; `make check` compares.

Every command takes `--json` and prints one document on stdout, also when it fails
(`{"error": {"kind", "code", "message"}}`). Exit codes: 0 ok · 1 refused, failed or not verified · 2 usage · 3 unavailable, retry
later · 4 our storage is corrupt · 70 a bug of ours.
"""


def commands(command: object, name: str) -> Iterator[str]:
    """One section per command, depth first."""
    context = typer.Context(command, info_name=name)  # type: ignore[arg-type]
    children = getattr(command, "commands", {})
    if children:
        for child, sub in children.items():
            yield from commands(sub, f"{name} {child}")
        return
    lines = [f"## `{name}`", "", (command.help or "").strip(), ""]  # type: ignore[attr-defined]
    rows = [record for param in command.params if (record := param.get_help_record(context))]  # type: ignore[attr-defined]
    arguments = [p for p in command.params if p.param_type_name == "argument"]  # type: ignore[attr-defined]
    usage = " ".join(p.make_metavar(context) for p in arguments)
    lines += ["```", f"{name} [OPTIONS] {usage}".rstrip(), "```", ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| `{flag}` | {text.strip()} |".replace("|", "\\|", 0) for flag, text in rows if "--help" not in flag]
    yield "\n".join(lines) + "\n"


def page() -> str:
    sections = [INTRO]
    for name, app in PROGRAMS.items():
        sections += commands(typer.main.get_command(app), name)
    return "\n".join(sections)


def main() -> None:
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        raise SystemExit(f"{PAGE} differs from the programs' help. Run `make docs` and commit the result.")


if __name__ == "__main__":
    main()
