"""The data sets of ANABRANCH_DATA as files a scenario names."""

import gzip
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEST = 2500  # pictures of the test set that a run is measured on
VALIDATION = 2500  # of the training set, which no silo gets: strategies are tuned on these


def folder() -> Path:
    where = os.environ.get("ANABRANCH_DATA")
    if not where:
        raise SystemExit("set ANABRANCH_DATA to the folder that holds the data sets (fashion-mnist, …)")
    return Path(where)


def fashion(out: Path) -> None:
    """train.npz, validation.npz and test.npz: x uint8 (n, 28, 28), y uint8 (n,)."""
    source = folder() / "fashion-mnist"
    x, y = _idx(source / "train-images-idx3-ubyte.gz"), _idx(source / "train-labels-idx1-ubyte.gz")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
    held, rest = order[:VALIDATION], order[VALIDATION:]
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "train.npz", x=x[rest], y=y[rest])
    np.savez(out / "validation.npz", x=x[held], y=y[held])
    x, y = _idx(source / "t10k-images-idx3-ubyte.gz"), _idx(source / "t10k-labels-idx1-ubyte.gz")
    some = np.random.Generator(np.random.PCG64(1)).permutation(len(y))[:TEST]
    np.savez(out / "test.npz", x=x[some], y=y[some])


def people(out: Path) -> None:
    """train.npz and test.npz of UCI Adult: x float32 (n, 107), numbers standardised and words one-hot, y uint8 (n,)."""
    text = gzip.decompress((folder() / "adult" / "adult.data.gz").read_bytes()).decode()
    rows = [line.split(", ") for line in text.splitlines() if line]
    columns = [list(column) for column in zip(*rows, strict=True)]
    parts = []
    for place in (0, 4, 10, 11, 12):  # age, years of school, capital gain and loss, hours a week
        numbers = np.log1p(np.array(columns[place], np.float64))
        parts.append(((numbers - numbers.mean()) / numbers.std())[:, None])
    for place in (1, 3, 5, 6, 7, 8, 9, 13):
        words = np.array(columns[place])
        parts.append(words[:, None] == np.unique(words)[None, :])
    x = np.concatenate(parts, axis=1).astype(np.float32)
    y = np.array([label == ">50K" for label in columns[14]], np.uint8)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
    held, rest = order[:TEST], order[TEST:]
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "train.npz", x=x[rest], y=y[rest])
    np.savez(out / "test.npz", x=x[held], y=y[held])


def _idx(path: Path) -> NDArray[np.uint8]:
    """The IDX format of MNIST: two zero bytes, type 8, the number of dimensions, each dimension, the bytes."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
