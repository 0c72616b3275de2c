"""What a command prints when all went well; `anabranch.exits` has the rest."""

import json
from typing import Any

from rich.console import Console, RenderableType


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as one JSON document on stdout, or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(human, soft_wrap=isinstance(human, str))
