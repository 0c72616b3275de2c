"""Which tensors of a model travel, and their way between torch and canonical files.

Trainable: parameters with `requires_grad`, under the first name `named_parameters` finds, so tied tensors travel
once. They travel as deltas. Buffers: persistent floating-point buffers, as values, if the job averages them. Never:
integer buffers and frozen parameters.

On the wire everything is float32. A parameter of lower precision is cast on the way in and the delta is taken from
what it was cast *to*: the rounding of the base is not the silo's work and must not reach the server as if it were.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from anabranch.wire.tensors import Manifest, TensorFile, TensorSpec, TensorWriter
from silo_agent.training.padding import wholes
from silo_agent.training.task import Garbage

Buffers = Literal["average", "local", "none"]


def travelling(model: torch.nn.Module, buffers: Buffers) -> dict[str, torch.Tensor]:
    """The tensors that travel, by name, as views of the model. Raises Garbage for what cannot travel."""
    tensors: dict[str, torch.Tensor] = {}
    parts = wholes(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not parameter.is_floating_point() or isinstance(parameter, torch.nn.UninitializedParameter):
            raise Garbage(
                "CannotTravel", f"parameter {name!r} is lazy or of type {parameter.dtype}; only reals travel"
            )
        named, whole = parts.get(name, (name, parameter))
        tensors[named] = whole.detach()
    if not tensors:
        raise Garbage("NothingToTrain", "the model has no parameter that requires a gradient")
    if buffers == "average":
        tensors.update(float_buffers(model))
    return tensors


def float_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Persistent floating-point buffers by name, tied ones once, as views of the model."""
    persistent = model.state_dict(keep_vars=True).keys()
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in persistent and buffer.is_floating_point()
    }


def manifest_of(model: torch.nn.Module, buffers: Buffers) -> Manifest:
    """Names, shapes and roles of what travels. Raises Garbage; Refused for names or numbers of tensors out of
    bounds."""
    trainable = travelling(model, "none").keys()
    return Manifest(
        tuple(
            TensorSpec(name, tuple(tensor.shape), "trainable" if name in trainable else "buffer")
            for name, tensor in travelling(model, buffers).items()
        )
    )


def load(model: torch.nn.Module, path: Path, manifest: Manifest) -> None:
    """Put the values of a canonical file into the model, each cast to its tensor's type, on its device.

    Holds one tensor in memory besides the model. Raises Refused as `check_file`, Garbage when the model has changed.
    """
    tensors = _same_tensors(model, manifest)
    with TensorFile(path, manifest) as file, torch.no_grad():
        for spec in manifest.specs:
            tensors[spec.name].copy_(_placed(_read(file, spec), tensors[spec.name]))


def save_values(model: torch.nn.Module, path: Path, manifest: Manifest) -> str:
    """Write the values of what travels; the file's hex SHA-256. The file appears whole or not at all."""
    tensors = _same_tensors(model, manifest)
    return _write(
        path, manifest, ((spec, _as_float32(_whole(tensors[spec.name]))) for spec in manifest.specs)
    )


def gather(model: torch.nn.Module, manifest: Manifest) -> None:
    """What a rank does while another saves: of a sharded tensor each has a part, and all must take part."""
    tensors = _same_tensors(model, manifest)
    for spec in manifest.specs:  # in the order in which it is saved
        _whole(tensors[spec.name])


def save_update(model: torch.nn.Module, base: Path, path: Path, manifest: Manifest) -> str:
    """Write trained − base for trainable tensors and values for buffers; the file's hex SHA-256.

    `base`: the file that `load` read. The update appears at `path` whole or not at all. Raises Garbage when a value
    is not finite or the model is no longer the one the manifest describes.
    """
    tensors = _same_tensors(model, manifest)
    with ExitStack() as stack:
        file = stack.enter_context(TensorFile(base, manifest))

        def pieces() -> Iterator[tuple[TensorSpec, torch.Tensor]]:
            for spec in manifest.specs:
                tensor = _whole(tensors[spec.name])
                yield (
                    spec,
                    _delta(tensor, _read(file, spec)) if spec.role == "trainable" else _as_float32(tensor),
                )

        return _write(path, manifest, pieces())


def _same_tensors(model: torch.nn.Module, manifest: Manifest) -> dict[str, torch.Tensor]:
    """What the manifest names, found in the model. The job's code may have changed it since."""
    with_buffers = any(spec.role == "buffer" for spec in manifest.specs)
    tensors = travelling(model, "average" if with_buffers else "none")
    if {name: tuple(t.shape) for name, t in tensors.items()} != {s.name: s.shape for s in manifest.specs}:
        raise Garbage("ModelChanged", "the model's tensors are no longer those of the approved job")
    return tensors


def _read(file: TensorFile, spec: TensorSpec) -> torch.Tensor:
    values = np.empty(spec.shape, np.dtype("<f4"))
    file.read(spec.name, 0, spec.elements, values)
    return torch.from_numpy(values)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that ranks have sharded among them (`fully_shard`); on every rank at once."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _placed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values` in the shards of `like`."""
    if hasattr(like, "device_mesh") and hasattr(like, "placements"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(values.to(like.device), like.device_mesh, like.placements)
    return values


def _delta(trained: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """trained − base in the wider of float32 and the tensor's own type, then float32."""
    wide = torch.float64 if trained.dtype == torch.float64 else torch.float32
    loaded = base.to(trained.dtype).to(wide)
    return _as_float32(trained.detach().cpu().to(wide) - loaded)


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _write(path: Path, manifest: Manifest, pieces: Iterator[tuple[TensorSpec, torch.Tensor]]) -> str:
    beside = path.with_name(f".{path.name}.tmp")
    with TensorWriter(beside, manifest) as writer:
        for spec, tensor in pieces:
            if not torch.isfinite(tensor).all():
                raise Garbage("NotFinite", f"tensor {spec.name!r} has become NaN or infinite")
            writer.write(tensor.numpy())
        digest = writer.close()
    os.replace(beside, path)
    return digest
