"""Whose records are whose: the unit that privacy hides is one record, or all records of one subject."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from silo_agent.training.task import Dataset, Garbage

Unit = Sequence[int]  # indices of its records


@dataclass(frozen=True)
class Units:
    count: int
    records: Sequence[Unit] | None  # of each; None: unit i is record i

    def __getitem__(self, unit: int) -> Unit:
        return (unit,) if self.records is None else self.records[unit]


def units_of(task: Any, dataset: Dataset, unit: Literal["example", "subject"]) -> Units:
    """Raises Garbage where units are subjects and the task does not say whose each record is."""
    if unit == "example":
        return Units(len(dataset), None)
    say = getattr(task, "subjects", None)
    if say is None:
        raise Garbage(
            "NoSubjects",
            'privacy.unit is "subject", so the task needs a method subjects(dataset) -> Sequence: the key of each '
            "record's subject, in the order of the data set",
        )
    keys = say(dataset)
    if len(keys) != len(dataset):
        raise Garbage("NoSubjects", f"subjects() gave {len(keys)} keys for {len(dataset)} records", say)
    found: dict[str | bytes | int, list[int]] = {}
    for index, key in enumerate(keys):
        found.setdefault(_comparable(key, say), []).append(index)
    return Units(len(found), list(found.values()))


def groups(units: Units, chosen: Sequence[int], most: int | None) -> Iterator[list[Unit]]:
    """The chosen units whole, as many at a time as have at most `most` records; a larger one comes alone."""
    group: list[Unit] = []
    size = 0
    for unit in chosen:
        records = units[unit]
        if group and most is not None and size + len(records) > most:
            yield group
            group, size = [], 0
        group.append(records)
        size += len(records)
    if group:
        yield group


def _comparable(key: Any, culprit: Any) -> str | bytes | int:
    """A key that is equal to another of the same subject: what compares by identity would make each record a subject."""
    if isinstance(key, str | bytes):
        return key
    if isinstance(key, Integral):
        return int(key)
    raise Garbage("NoSubjects", f"a subject's key is a {type(key).__name__}; take str, bytes or int", culprit)
