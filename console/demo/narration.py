"""What the demo says while it works: finished steps, and the job as it goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from anabranch.v1 import admin_pb2
from console.board import block, line
from console.watch import ENDED

Show = Callable[[admin_pb2.JobStatus], None]


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    start = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - start:.1f} s[/]", highlight=False)


@contextmanager
def view(console: Console, versions: int) -> Iterator[Show]:
    """A function that shows a status: redrawn on a terminal, else one line for every tenth of the way."""
    if console.is_terminal:
        with Live(Text("waiting for the first version"), console=console, refresh_per_second=4) as live:

            def redraw(status: admin_pb2.JobStatus) -> None:
                live.update(Group(*block(status, every_silo=True)))

            yield redraw
        return
    shown = -1

    def tell_line(status: admin_pb2.JobStatus) -> None:
        nonlocal shown
        tenth = status.head * 10 // max(1, versions)
        if tenth > shown or status.status in ENDED:
            shown = tenth
            console.print(line(status), highlight=False, soft_wrap=True)

    yield tell_line
