"""Which models may be trained with privacy: every module is looked at, and what mixes records is refused by name.

Opacus' ModuleValidator looks only at modules that have something to train: a BatchNorm without affine parameters passes
it, and its statistics of the batch go into every other record's gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from anabranch.privacy import Privacy
from silo_agent.training.task import Garbage

# Modules that Opacus has no gradients of single records for, where they train.
REPLACEMENTS: dict[type[torch.nn.Module], str] = {
    torch.nn.LSTM: "opacus.layers.DPLSTM",
    torch.nn.GRU: "opacus.layers.DPGRU",
    torch.nn.RNN: "opacus.layers.DPRNN",
    torch.nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
    torch.nn.EmbeddingBag: "torch.nn.Embedding and a sum over the words",
}
STATISTICS = ("running_", "num_batches_tracked")  # how buffers begin that follow the records


def admit(task: Any, model: torch.nn.Module, optimizer: torch.optim.Optimizer, privacy: Privacy) -> None:
    """Raises Garbage that names each module, parameter or method that has to change, and what to."""
    faults = [*_modules(model), *_parameters(model, optimizer, privacy)]
    if getattr(task, "sampler", None) is not None:
        faults.append("the task's sampler(): leave it out, for with [privacy] chance alone picks the records")
    if faults:
        raise Garbage("NotPrivate", "this cannot be trained with privacy: " + "; ".join(faults))


def _modules(model: torch.nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        called = f"module {name!r} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{called} is compiled by TorchScript: take the module it was made of"
        elif isinstance(module, _BatchNorm):
            yield f"{called} mixes the records of a batch: take torch.nn.GroupNorm"
        elif isinstance(module, _InstanceNorm) and module.track_running_stats:
            yield f"{called} keeps statistics of records: take track_running_stats=False"
        elif kept := [b for b, _ in module.named_buffers(recurse=False) if b.startswith(STATISTICS)]:
            yield f"{called} keeps statistics of records ({', '.join(kept)}): take torch.nn.GroupNorm or LayerNorm"
        elif type(module) is torch.nn.LayerNorm and module.bias is None and _trains(module):
            yield f"{called}: take one with a bias, or torch.nn.RMSNorm; Opacus fails without"
        elif _trains(module) and (other := REPLACEMENTS.get(type(module))):
            yield f"{called}: take {other}"


def _parameters(model: torch.nn.Module, optimizer: torch.optim.Optimizer, privacy: Privacy) -> Iterator[str]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        if isinstance(parameter, torch.nn.UninitializedParameter):
            yield f"parameter {name!r} has no shape yet: name its sizes"
        elif parameter.dtype not in (torch.float32, torch.float64):
            yield f"parameter {name!r} is of {parameter.dtype}, whose sums are too coarse: take float32"
        elif id(parameter) not in held:
            yield f"parameter {name!r} is trainable and not in the task's optimizer: freeze it or put it in"
        elif privacy.clipping == "per_layer" and parameter.ndim == 0:  # Opacus takes one norm for all records
            yield f'parameter {name!r} is a single number: give it shape (1,), or take clipping = "flat"'
    if not held <= {id(parameter) for parameter in trainable.values()}:
        yield "the task's optimizer holds what is not a trainable parameter of the model"


def _trains(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
