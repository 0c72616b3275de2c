"""What packing an update costs on one core, beside the SHA-256 and a copy of the same dense bytes in the same run.

python -m benchmarks.packing [MILLIONS] [--density D] [--values DTYPE] [--chunk ELEMENTS]      default: 100, 0.0625, bf16

Seconds are of the CPU, the kernel's for reading and writing files included, the waiting for a disk not. `pack` ranks
(two passes over the dense file), encodes (a third), writes and hashes; with `--chunk` it ranks where it encodes. `read`
decodes every block once, as an aggregation does. `dense read` is what an aggregation does without packing.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np

from anabranch.link import Packing, Values
from anabranch.rules.packing import BLOCK
from anabranch.rules.step import TensorReader
from anabranch.wire import limits
from anabranch.wire.manifest import Manifest, TensorSpec
from anabranch.wire.packed import PackedFile, check_packed, pack
from anabranch.wire.tensors import TensorFile, TensorWriter

TENSORS = 40  # of different scales, as a network's layers are
COPIED = 64 * limits.MIB  # at once


def model(millions: float) -> Manifest:
    size = int(millions * 1e6) // TENSORS
    return Manifest(tuple(TensorSpec(f"layer-{n:02}", (size,), "trainable") for n in range(TENSORS)))


def write(manifest: Manifest, path: Path) -> None:
    chance = np.random.default_rng(0)
    with TensorWriter(path, manifest) as writer:
        for spec in manifest.specs:
            scale = np.float32(chance.uniform(1e-4, 1e-3))
            for start in range(0, spec.elements, BLOCK):
                count = min(BLOCK, spec.elements - start)
                writer.write(chance.standard_normal(count, np.float32) * scale)
        writer.close()


def read(source: TensorReader, manifest: Manifest) -> None:
    out = np.empty(BLOCK, np.float32)
    for spec in manifest.specs:
        for start in range(0, spec.elements, BLOCK):
            stop = min(start + BLOCK, spec.elements)
            source.read(spec.name, start, stop, out[: stop - start])


def sha256(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def copy(size: int) -> None:
    source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
    begun = time.process_time()
    for start in range(0, size, COPIED):
        count = min(COPIED, size - start)
        target[:count] = source[:count]
    seconds["copy"] = time.process_time() - begun


seconds: dict[str, float] = {}


def timed(name: str, call: Callable[[], object]) -> None:
    begun = time.process_time()
    call()
    seconds[name] = time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("millions", nargs="?", type=float, default=100)
    parser.add_argument("--density", type=float, default=1 / 16)
    parser.add_argument("--values", choices=get_args(Values), default="bf16")
    parser.add_argument("--chunk", type=int)
    given = parser.parse_args()
    manifest, packing = model(given.millions), Packing(given.density, given.values, given.chunk)
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-") as scratch:
        dense, packed = Path(scratch) / "dense", Path(scratch) / "packed"
        write(manifest, dense)
        copy(manifest.file_bytes)
        timed("sha256", lambda: sha256(dense))
        with TensorFile(dense, manifest) as source:
            timed("dense read", lambda: read(source, manifest))
            timed("pack", lambda: pack(source, manifest, packing, packed))
        with PackedFile(packed, manifest, packing.values) as found:
            timed("read", lambda: read(found, manifest))
        timed("check", lambda: check_packed(packed, manifest, packing))
        report(manifest, packed.stat().st_size)


def report(manifest: Manifest, size: int) -> None:
    both = seconds["pack"] + seconds["read"]
    print(
        json.dumps(
            {
                "dense_bytes": manifest.file_bytes,
                "packed_bytes": size,
                "seconds": {name: round(taken, 3) for name, taken in seconds.items()},
                "pack_and_read_to_sha256": round(both / seconds["sha256"], 2),
                "pack_and_read_to_copy": round(both / seconds["copy"], 2),
                "pack_and_read_gb_per_second": round(manifest.file_bytes / both / 1e9, 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
