"""State of training on disk: tensors in a safetensors file, the rest as JSON in its metadata. One file, so one
rename.

Nothing here can name a class or a module: what is read back is numbers, text, lists, dicts and tensors.
"""

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anabranch import durable

_NOT_OURS = (ValueError, KeyError, TypeError, RecursionError)
Tree = Any  # tensors, arrays, numbers, text, None in dicts, lists and tuples


def write(path: Path, state: Tree) -> None:
    """Durably replace `path` by `state`. Killed before the rename: the old file stands.

    Raises TypeError for a state with anything else in it.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_to_json(state, tensors))
    beside = path.with_name(f".{path.name}.tmp")
    save_file(tensors, beside, metadata={"state": text})
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    durable.rename(beside, path)


def read(path: Path) -> Tree | None:
    """What `write` wrote; None when there is no such file or it is not one of ours."""
    with contextlib.suppress(FileNotFoundError, SafetensorError, *_NOT_OURS):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return _from_json(json.loads(file.metadata()["state"]), tensors)
    return None


def random_state() -> Tree:
    """Of torch on every device, numpy's global generator and Python's."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (algorithm, [int(key) for key in keys], *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: Tree) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def seed_all(seed: int) -> None:
    """Everything a job's code may draw from without its own generator."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _to_json(value: Tree, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` with each tensor moved to `tensors`. Containers are tagged: JSON knows neither tuples nor integer
    keys."""
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):06d}"
        # A copy, since safetensors refuses to write one storage twice.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_to_json(k, tensors), _to_json(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        tag = "list" if isinstance(value, list) else "tuple"
        return {tag: [_to_json(item, tensors) for item in value]}
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any, tensors: dict[str, torch.Tensor]) -> Tree:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": pairs}:
            return {_from_json(k, tensors): _from_json(v, tensors) for k, v in pairs}
        case {"list": items}:
            return [_from_json(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_from_json(item, tensors) for item in items)
    return value
