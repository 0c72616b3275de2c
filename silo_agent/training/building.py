"""A task's model and its optimizer, as the job file wants them."""

from pathlib import Path

import torch

from anabranch.terms import JobFile, Optimizer
from silo_agent.training import saved
from silo_agent.training.adapters import adapted
from silo_agent.training.course import seed_of
from silo_agent.training.task import Garbage, Task


def build_model(task: Task, file: JobFile, base: Path | None = None) -> torch.nn.Module:
    """`Task.model()` under the job's seed, then the job's adapter: the same model at the submitter and at every silo.

    Raises Garbage, also when the job names a base model and none is given.
    """
    saved.seed_all(seed_of("model", file.job.seed))
    if file.job.base is None:
        model = task.model()
    elif base is None:
        raise Garbage(
            "NoBase", f"the job reads the base model {file.job.base!r}: give its folder with --base PATH"
        )
    else:
        model = task.model(base)
    if not isinstance(model, torch.nn.Module):
        raise Garbage(
            "NotAModel", f"model() returned {type(model).__name__}, not a torch.nn.Module", task.model
        )
    saved.seed_all(seed_of("adapter", file.job.seed))  # whatever making the model drew
    return adapted(model, file.adapter)


def optimizer_for(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The job file's optimizer over the parameters that require a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
