"""Toy pictures for three silos: a disc, a square or a cross, on dark, bright or noisy ground.

python data.py FOLDER      writes FOLDER/{dark,bright,noisy}/part-{0,1}.npz
"""

import sys
from pathlib import Path

import numpy as np

SIZE = 32
GROUNDS = {
    "dark": (40, 5),
    "bright": (150, 5),
    "noisy": (90, 40),
}  # mean and deviation of the ground's colour


def shape(kind, centre, radius):
    """Where the shape is: disc 0, square 1, cross 2."""
    rows, columns = np.abs(np.mgrid[:SIZE, :SIZE] - np.reshape(centre, (2, 1, 1)))
    if kind == 0:
        return rows**2 + columns**2 <= radius**2
    inside = (rows <= radius) & (columns <= radius)
    return inside if kind == 1 else inside & ((rows <= 1) | (columns <= 1))


def pictures(ground, count, random):
    mean, deviation = GROUNDS[ground]
    y = random.integers(0, 3, count)
    x = random.normal(mean, deviation, (count, 3, SIZE, SIZE))
    for picture, kind in zip(x, y, strict=True):
        where = shape(kind, random.integers(9, SIZE - 9, 2), random.integers(5, 9))
        picture[:, where] += random.uniform(40, 90, (3, 1))
    return x.clip(0, 255).astype(np.uint8), y


def write(folder, count=400):
    """`count` pictures to each part."""
    for number, ground in enumerate(GROUNDS):
        (folder / ground).mkdir(parents=True, exist_ok=True)
        for part in range(2):
            x, y = pictures(ground, count, np.random.default_rng((number, part)))
            np.savez(folder / ground / f"part-{part}.npz", x=x, y=y)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
