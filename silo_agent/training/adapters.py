"""What `[adapter]` of a job file makes of the task's model: which parameters train; and what stays, as one digest.

LoRA is peft's. Its names travel as they are: `base_model.model.encoder.query.lora_A.default.weight`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from anabranch.terms import Adapter
from silo_agent.training.task import Garbage
from silo_agent.training.tensors import Buffers, travelling

UNREAD = "original_module"  # what peft keeps of a head beside the copy it trains


def adapted(model: torch.nn.Module, adapter: Adapter | None) -> torch.nn.Module:
    """`model`, or peft's wrapping of it, with what trains requiring a gradient and nothing else. Draws LoRA's A.

    Raises Garbage for modules the model has not, and where peft is missing.
    """
    if adapter is None or adapter.kind == "full":
        return model
    for head in adapter.heads:
        if not any(_called(name, head) for name, _ in model.named_modules()):
            raise Garbage("NoSuchHead", f"adapter.heads: the model has no module {head!r}; {_modules(model)}")
    return _with_heads(model, adapter.heads) if adapter.kind == "head" else _with_lora(model, adapter)


def base_digest(model: torch.nn.Module, buffers: Buffers) -> str | None:
    """SHA-256 over name, type, shape and bytes of all that neither trains nor travels but is part of the model.

    None: no parameter is frozen. Holds one tensor in memory besides the model, and that
    only where it lies on a GPU or is not contiguous.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(_staying(model, buffers)):
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(found: str | None, approved: str | None, base: Path | None) -> None:
    """Raises Garbage when what is frozen here is not what the silos approved."""
    if found == approved:
        return
    where = f"model folder {base}" if base is not None else "model as the task makes it here"
    raise Garbage(
        "OtherBase",
        f"the {where} gives frozen weights of SHA-256 {found}, the approved job has {approved}: put the very files there "
        "that the job was submitted with (ask its owner; the same revision, the same transformers and peft), then the "
        "job goes on by itself",
    )


def _staying(model: torch.nn.Module, buffers: Buffers) -> Iterator[tuple[str, torch.Tensor]]:
    travels = travelling(model, buffers)
    persistent = model.state_dict(keep_vars=True).keys()
    kept = [(name, tensor) for name, tensor in model.named_buffers() if name in persistent]
    for name, tensor in [*model.named_parameters(), *kept]:
        if name not in travels and UNREAD not in name.split("."):
            yield name, tensor


def _with_heads(model: torch.nn.Module, heads: Sequence[str]) -> torch.nn.Module:
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if any(_called(name, head) for head in heads):
            module.requires_grad_(True)
    return model


def _with_lora(model: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise Garbage("NoPeft", f"LoRA needs {error.name}: pip install 'anabranch[lora]'") from error
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets) or None
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # peft divides it by r and asks no more
        lora_dropout=adapter.dropout,
        target_modules=targets,
        modules_to_save=list(adapter.heads) or None,
    )
    try:
        wrapped: torch.nn.Module = get_peft_model(model, config)
    except ValueError as error:
        raise Garbage("NoSuchTarget", f"adapter.targets: {error}; {_modules(model)}") from error
    for name, parameter in wrapped.named_parameters():
        if adapter.freeze_a and {"lora_A", "lora_embedding_A"} & set(name.split(".")):
            parameter.requires_grad_(False)
    return wrapped


def _called(name: str, end: str) -> bool:
    """As peft compares: the whole name, or its last parts."""
    return name == end or name.endswith(f".{end}")


def _modules(model: torch.nn.Module) -> str:
    names = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} - {""})
    return f"its modules are called {', '.join(names[:40])}"
