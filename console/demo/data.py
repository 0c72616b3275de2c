"""The demo's data: scikit-learn's bundled digits, dealt to silos with skewed labels.

For every label, the shares of the silos are one draw from Dirichlet(`CONCENTRATION`): some silos hardly ever see some
digits, which is what makes a local-only model weak on everybody else's records. Dealt apart, no two of up to ten silos
have a digit in common. The deal depends on the seed and the number of silos alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CONCENTRATION = 0.3
HELD_OUT = 0.25  # of every silo's records, never trained on
SMALLEST = 24  # records a silo gets at least; a deal with a smaller one is drawn again
DEALS = 200

RIVERS = (
    "aare",
    "danube",
    "elbe",
    "loire",
    "tagus",
    "rhone",
    "drava",
    "ebro",
    "oder",
    "seine",
    "tisza",
    "vltava",
)


@dataclass(frozen=True)
class Records:
    """`pixels` (n, 64) float32 in [0, 1] and `labels` (n,) int64."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SiloRecords:
    silo: str
    train: Records
    held_out: Records

    def counts(self) -> list[int]:
        """How many records of each label 0..9 this silo holds, both parts together."""
        labels = np.concatenate([self.train.labels, self.held_out.labels])
        return [int(count) for count in np.bincount(labels, minlength=10)]


def names(silos: int) -> list[str]:
    """One DNS label per silo."""
    return [RIVERS[i] if i < len(RIVERS) else f"silo-{i + 1}" for i in range(silos)]


def deal(silos: int, seed: int, *, apart: bool = False) -> list[SiloRecords]:
    """Every record goes to exactly one silo, and there to exactly one of `train` and `held_out`."""
    digits = load_digits()
    pixels = (digits.data / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    random = np.random.default_rng(seed)
    shares = (_apart if apart else _shares)(labels, silos, random)
    return [
        _part(name, pixels, labels, share, random) for name, share in zip(names(silos), shares, strict=True)
    ]


def _shares(labels: NDArray[np.int64], silos: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    for _ in range(DEALS):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(silos)]
        for label in range(10):
            indices = random.permutation(np.flatnonzero(labels == label))
            cuts = np.cumsum(random.dirichlet(np.full(silos, CONCENTRATION)))[:-1]
            for part, chunk in zip(parts, np.split(indices, (cuts * len(indices)).astype(int)), strict=True):
                part.append(chunk)
        shares = [np.concatenate(part) for part in parts]
        if min(len(share) for share in shares) >= SMALLEST:
            return shares
    raise ValueError(
        f"no deal of {len(labels)} digits gives each of {silos} silos {SMALLEST}; ask for fewer silos"
    )


def _apart(labels: NDArray[np.int64], silos: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Silo i gets the digits at places i, i + silos, …; with more than ten silos, i and i + 10 share one."""
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(silos)]
    for place, label in enumerate(random.permutation(10)):
        holders = range(place, silos, 10) or [place % silos]
        dealt = np.array_split(random.permutation(np.flatnonzero(labels == label)), len(holders))
        for holder, chunk in zip(holders, dealt, strict=True):
            parts[holder].append(chunk)
    return [np.concatenate(part) for part in parts]


def _part(
    name: str,
    pixels: NDArray[np.float32],
    labels: NDArray[np.int64],
    share: NDArray[np.int64],
    random: np.random.Generator,
) -> SiloRecords:
    share = random.permutation(share)
    kept = round(len(share) * HELD_OUT)
    out, train = share[:kept], share[kept:]
    return SiloRecords(name, Records(pixels[train], labels[train]), Records(pixels[out], labels[out]))


def write(part: SiloRecords, directory: Path) -> None:
    """`train.npz` and `validation.npz`, the two splits the demo's task asks for."""
    directory.mkdir(parents=True, exist_ok=True)
    save(directory / "train.npz", part.train)
    save(directory / "validation.npz", part.held_out)


def save(path: Path, records: Records) -> None:
    np.savez(path, pixels=records.pixels, labels=records.labels)


def together(parts: list[SiloRecords]) -> Records:
    """All silos' held-out records, in the order of the silos."""
    return Records(
        np.concatenate([part.held_out.pixels for part in parts]),
        np.concatenate([part.held_out.labels for part in parts]),
    )
