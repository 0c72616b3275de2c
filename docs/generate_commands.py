"""Write `docs/commands.md` from the programs' own help; with --check, fail when it differs.

python docs/generate_commands.py [--check]
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from auditor.main import app as audit
from console.main import app as console
from reviver.main import app as reviver
from server.main import app as server
from silo_agent.main import app as silo

PAGE = Path(__file__).parent / "commands.md"
PROGRAMS = {
    "anabranch": console,
    "anabranch-server": server,
    "anabranch-silo": silo,
    "anabranch-reviver": reviver,
    "anabranch-audit": audit,
}
INTRO = """# Commands

Generated from the programs' help by `python docs/generate_commands.py`; `make check` compares.

Every command takes `--json` and prints one document on stdout, also when it fails
(`{"error": {"kind", "code", "message"}}`; kinds: usage, refused, conflict, unavailable, corrupt, bug); `job watch` prints
one per look. Exit codes: 0 ok · 1 refused, failed or not verified, or nobody reads any more · 2 usage · 3 unavailable, retry
later · 4 our storage is corrupt · 70 a bug of ours · 130 Ctrl-C.
"""


def commands(command: Any, name: str) -> Iterator[str]:
    """One section per command, depth first."""
    children = getattr(command, "commands", {})
    if children:
        for child, sub in children.items():
            yield from commands(sub, f"{name} {child}")
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(argument(p) for p in arguments)
    rows = [(argument(p), p) for p in arguments] + [(", ".join(p.opts), p) for p in options]
    lines = [f"## `{name} {usage}".rstrip() + "`", "", inspect.cleandoc(command.help or ""), ""]
    if rows:
        lines += ["| | |", "| --- | --- |", *(f"| `{flag}` | {described(p)} |" for flag, p in rows), ""]
    yield "\n".join(lines)


def argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def described(parameter: Any) -> str:
    plain = isinstance(parameter.default, str | int | float) and not isinstance(parameter.default, bool)
    default = f" Default: `{parameter.default}`." if plain and parameter.default != "" else ""
    return " ".join((parameter.help or "").split()) + default


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
