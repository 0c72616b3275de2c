"""Dealing records to silos: one file for each, of the same kind as the whole."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import Reason, Refused
from simulator.chance import generator
from simulator.scenario import Column, Data, Dirichlet, Files

SHARES = 3  # what the generator of (seed, this) draws
TRIES = 1000

Indices = NDArray[np.int64]


def deal(data: Data, silos: int, seed: int, folder: Path) -> list[Path]:
    """What each silo reads, in order; new files lie in `folder`. Raises Refused(MALFORMED), saying what does not fit."""
    match data.deal:
        case Files(pattern=pattern):
            return _as_many(sorted(data.path.glob(pattern)), silos, f"files {pattern} in {data.path}")
        case Column(name=name):
            header, rows = _read_rows(data.path)
            values = np.array([row[_position(header, name, data.path)] for row in rows])
            groups = [np.flatnonzero(values == value) for value in sorted(set(values.tolist()))]
            return _write(data.path, _as_many(groups, silos, f"values of column {name}"), folder)
        case Dirichlet() as rule:
            labels = _labels(data.path, rule.label)
            return _write(data.path, shares(labels, silos, rule.alpha, rule.least, seed), folder)
    return [data.path] * silos


def shares(labels: NDArray[np.generic], silos: int, alpha: float, least: int, seed: int) -> list[Indices]:
    """Indices of each silo, ascending: every class in shares of its own, Dirichlet(alpha). All records are dealt once."""
    chance = generator(seed, SHARES)
    if len(labels) < least * silos:
        raise Refused(Reason.MALFORMED, f"{len(labels)} records are not {least} for each of {silos} silos")
    for _ in range(TRIES):
        parts: list[list[Indices]] = [[] for _ in range(silos)]
        for label in np.unique(labels):
            mine = chance.permutation(np.flatnonzero(labels == label))
            cuts = np.cumsum(chance.dirichlet(np.full(silos, alpha)))[:-1] * len(mine)
            for part, piece in zip(parts, np.split(mine, np.round(cuts).astype(int)), strict=True):
                part.append(piece)
        dealt = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, dealt)) >= least:
            return dealt
    raise Refused(
        Reason.MALFORMED,
        f"no deal of {len(labels)} records with alpha = {alpha} gave each of {silos} silos {least} in {TRIES} tries; "
        "raise alpha, or lower `least`",
    )


def _as_many(found: list, silos: int, what: str) -> list:  # type: ignore[type-arg]
    if len(found) != silos:
        raise Refused(Reason.MALFORMED, f"there are {len(found)} {what}, and {silos} silos in the scenario")
    return found


def _labels(path: Path, name: str) -> NDArray[np.generic]:
    if path.suffix == ".npz":
        return _arrays(path, name)[name]
    header, rows = _read_rows(path)
    place = _position(header, name, path)
    return np.array([row[place] for row in rows])


def _write(path: Path, parts: Sequence[Indices], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    out = [folder / f"{number:05}-{path.name}" for number in range(len(parts))]
    if path.suffix == ".npz":
        arrays = _arrays(path)
        for target, part in zip(out, parts, strict=True):
            chosen: dict[str, Any] = {name: array[part] for name, array in arrays.items()}
            np.savez(target, **chosen)
        return out
    header, rows = _read_rows(path)
    for target, part in zip(out, parts, strict=True):
        with _text(target, "w") as file:
            csv.writer(file).writerows([header, *(rows[index] for index in part)])
    return out


def _arrays(path: Path, needed: str | None = None) -> dict[str, NDArray[np.generic]]:
    """All arrays of a file, one row for each record."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise Refused(Reason.MALFORMED, f"{path} cannot be read: {error}") from error
    if needed is not None and needed not in arrays:
        raise Refused(Reason.MALFORMED, f"{path} has the arrays {', '.join(sorted(arrays))}, not {needed}")
    if len({len(array) for array in arrays.values()}) != 1:
        raise Refused(Reason.MALFORMED, f"the arrays of {path} have different numbers of rows")
    return arrays


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with _text(path, "r") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(
            Reason.MALFORMED, f"{path} is no CSV file with a header, and no .npz file: {error}"
        ) from error
    return header, rows


def _position(header: list[str], name: str, path: Path) -> int:
    if name not in header:
        raise Refused(Reason.MALFORMED, f"{path} has the columns {', '.join(header)}, not {name}")
    return header.index(name)


@contextmanager
def _text(path: Path, mode: str) -> Iterator[IO[str]]:
    if path.suffix == ".gz":
        # mtime 0: equal records, equal bytes
        with open(path, f"{mode}b") as raw, gzip.GzipFile("", f"{mode}b", 9, raw, 0) as packed:
            with io.TextIOWrapper(packed, "utf-8", newline="") as file:
                yield file
    else:
        with open(path, mode, encoding="utf-8", newline="") as file:
            yield file
