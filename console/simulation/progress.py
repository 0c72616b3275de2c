"""How far runs are, on a terminal: virtual time and how fast it goes by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from console.simulation.parts import time


@dataclass
class Board:
    """A line for each run that is being made, and one for all."""

    progress: Progress
    labels: Sequence[str]
    horizon: float  # virtual seconds
    _all: TaskID = field(init=False)
    _lines: dict[int, TaskID] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = self.progress.add_task("runs", total=len(self.labels), told=f"0 of {len(self.labels)}")

    def at(self, number: int, now: float) -> None:
        if number not in self._lines:
            self._lines[number] = self.progress.add_task(self.labels[number], total=self.horizon, told="")
        line = self._lines[number]
        elapsed = self.progress.tasks[self.progress.task_ids.index(line)].elapsed or 0.0
        rate = f", {time(now / elapsed)} a second" if elapsed > 1 else ""
        self.progress.update(line, completed=now, told=f"{time(now)} of {time(self.horizon)}{rate}")

    def done(self, number: int) -> None:
        if number in self._lines:
            self.progress.remove_task(self._lines.pop(number))
        self.progress.advance(self._all)
        ended = int(self.progress.tasks[0].completed)
        self.progress.update(self._all, told=f"{ended} of {len(self.labels)}")


@contextmanager
def board(labels: Sequence[str], horizon: float, quiet: bool) -> Iterator[Board]:
    """On standard error, and only there where somebody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as shown:
        yield Board(shown, labels, horizon)
