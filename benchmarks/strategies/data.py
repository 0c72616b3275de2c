"""The data sets of ANABRANCH_DATA as files a scenario names."""

import csv
import gzip
import io
import os
import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def colours(out: Path) -> None:
    """train.npz, validation.npz and test.npz of CIFAR-10, which comes as JPEG: x uint8 (n, 32, 32, 3), y uint8 (n,)."""
    source = folder() / "cifar10_jpeg"
    x, y = _jpegs(source / "train.npz")  # in no order
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "train.npz", x=x[VALIDATION:], y=y[VALIDATION:])
    np.savez(out / "validation.npz", x=x[:VALIDATION], y=y[:VALIDATION])
    x, y = _jpegs(source / "test.npz")
    np.savez(out / "test.npz", x=x[:TEST], y=y[:TEST])


def _jpegs(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures and what is on them. The files lie end to end in one array."""
    with np.load(path) as file:
        packed, offset, labels = file["jpeg"].tobytes(), file["offset"], file["label"]
    files = [packed[start:end] for start, end in pairwise(offset)]
    return np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in files]), labels


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


def heart(out: Path) -> None:
    """Four hospitals; rows with a missing value among the first ten columns are left out, as Fed-Heart-Disease does."""
    silos = []
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        lines = (folder() / "heart_disease" / f"processed.{name}.data").read_text().split()
        rows = [line.split(",") for line in lines]
        table = np.array([[*row[:10], row[13]] for row in rows if "?" not in row[:10]], np.float32)
        age, sex, pain, pressure, cholesterol, sugar, ecg, rate, angina, depression, found = table.T
        numbers = ((age - 54) / 9, (pressure - 132) / 18, (cholesterol - 220) / 90, (rate - 140) / 25)
        kinds = (*(pain == kind for kind in (1, 2, 3, 4)), *(ecg == kind for kind in (0, 1, 2)))
        x = np.stack([*numbers, depression, sex, sugar, angina, *kinds], axis=1)
        silos.append((name, x, found > 0))
    _natural(out, silos)


def school(out: Path) -> None:
    """139 schools of Inner London: a pupil's examination score, in standard deviations."""
    table = np.loadtxt(
        gzip.decompress((folder() / "school" / "school.csv.gz").read_bytes()).decode().splitlines(),
        np.float32,
        delimiter=",",
        skiprows=1,
    )
    x = table[:, 1:-1] / table[:, 1:-1].max(axis=0)
    y = (table[:, -1] - 20) / 12.5
    own = [(int(number), table[:, 0] == number) for number in np.unique(table[:, 0])]
    _natural(out, [(f"school-{number:03}", x[mine], y[mine]) for number, mine in own])


def reviews(out: Path) -> None:
    """Four kinds of goods; a review is the logarithms of how often its words occur, in 2048 places by their CRC-32."""
    silos = []
    for name in ("books", "dvd", "electronics", "kitchen"):
        text = gzip.decompress((folder() / "amazon_reviews" / f"{name}.csv.gz").read_bytes()).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        x = np.zeros((len(rows), 2048), np.float32)
        for row, counts in zip(rows, x, strict=True):
            for word in re.findall(r"[a-z']+", f"{row['title']} {row['text']}".lower()):
                counts[zlib.crc32(word.encode()) % 2048] += 1
        x = np.log1p(x)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        silos.append((name, x, np.array([float(row["label"]) for row in rows])))
    _natural(out, silos)


def _natural(out: Path, silos: list[tuple[str, NDArray[Any], NDArray[Any]]]) -> None:
    """A file for each silo, and one of all: half of its records for training, a sixth for validation, a third for test."""
    chance = np.random.Generator(np.random.PCG64(0))
    (out / "silos").mkdir(parents=True, exist_ok=True)
    whole = []
    for number, (name, x, y) in enumerate(silos):
        count = len(y)
        part = np.repeat([0, 1, 2], [count - count // 6 - count // 3, count // 6, count // 3])
        arrays = {
            "x": x.astype(np.float32),
            "y": y.astype(np.float32),
            "silo": np.full(count, number),
            "part": chance.permutation(part),
        }
        np.savez(out / "silos" / f"{number:03}-{name}.npz", **arrays)
        whole.append(arrays)
    np.savez(out / "all.npz", **{name: np.concatenate([one[name] for one in whole]) for name in whole[0]})
