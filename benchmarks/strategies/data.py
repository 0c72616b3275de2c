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


def _idx(path: Path) -> NDArray[np.uint8]:
    """The IDX format of MNIST: two zero bytes, type 8, the number of dimensions, each dimension, the bytes."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
