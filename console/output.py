"""What a command prints when all went well; `anabranch.exits` has the rest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from anabranch.errors import Reason, Refused, Unavailable


def show(document: Any, human: RenderableType, as_json: bool) -> None:
    """Print `document` as one JSON document on stdout, or `human` for a person."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(human, soft_wrap=isinstance(human, str))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`. Refused for a name that cannot be a file's, before anything is asked for what is to be
    written; Unavailable for a disk that is full or does not let us.
    """
    if path.is_dir():
        raise Refused(
            Reason.MALFORMED, f"-o {path} is a folder: name the file to write, for example {path / 'NAME'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be written: {error.strerror or error}; free some space or name another place"
        ) from error
