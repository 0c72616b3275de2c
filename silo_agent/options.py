"""Options that commands of the agent share."""

from pathlib import Path
from typing import Annotated

import typer

# Absolute: training processes run in a folder of their own.
Dir = Annotated[
    Path,
    typer.Option("--dir", envvar="ANABRANCH_SILO", resolve_path=True, help="The agent's directory."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
HERE = Path("silo")
