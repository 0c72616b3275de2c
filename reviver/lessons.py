"""A job's reviver with its tasks as canonical files: in the process that runs the job's code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anabranch.terms import JobTerms, Revival
from anabranch.wire.tensors import Manifest, read_tensors, write_tensors
from reviver.public import public_of
from reviver.reviver import Reviver
from reviver.trial import Unsupported, inputs_of
from silo_agent.training import tensors
from silo_agent.training.adapters import base_digest, check_base
from silo_agent.training.channel import Rested, Revive, Revived, Teaching
from silo_agent.training.managed import build_model
from silo_agent.training.runner import check_manifest
from silo_agent.training.task import Task, load_task

Values = Mapping[str, torch.Tensor]


@dataclass
class Lessons:
    reviver: Reviver
    manifest: Manifest

    def revive(self, task: Revive) -> Revived | Rested:
        """Writes what distilling added to the head, or says why there is nothing. Raises Refused for a broken file."""
        cycle, reviver = task["cycle"], self.reviver
        for one in task["teachers"]:
            self._learn(reviver, one)
        if not len(reviver.teachers):  # what came was not finite, or far from all others
            return {"is": "rested", "cycle": cycle, "reason": "failed", "why": "no_teacher"}
        why = reviver.why_not(task["version"], task["seconds"], task["task_seconds"] or float("inf"))
        if why:
            return {"is": "rested", "cycle": cycle, "reason": "not_worth", "why": why}
        revived = reviver.revive(_values(task["head"], self.manifest), task["version"])
        if isinstance(revived, str):
            return {"is": "rested", "cycle": cycle, "reason": revived}
        if revived.scaled < 1.0:
            print(
                f"what was distilled is scaled by {revived.scaled:.3g}: no longer than silos' updates",
                flush=True,
            )
        self._write(task["out"], revived.delta)
        answer: Revived = {"is": "revived", "cycle": cycle}
        if revived.effect is not None:
            answer["before"], answer["after"] = revived.effect.before, revived.effect.after
            if revived.effect.accuracy is not None:
                answer["accuracy_before"], answer["accuracy_after"] = revived.effect.accuracy
        return answer

    def _learn(self, reviver: Reviver, one: Teaching) -> None:
        base, sent = _values(one["base"], self.manifest), _values(one["delta"], self.manifest)
        refused = reviver.learn(one["silo"], base, sent)
        if refused:
            print(f"a model of {one['silo']} does not teach: {refused}", flush=True)

    def _write(self, out: str, delta: Values) -> None:
        """Buffers are not distilled; what stands there is not read."""
        values = {
            spec.name: (delta[spec.name] if spec.name in delta else torch.zeros(spec.shape)).numpy()
            for spec in self.manifest.specs
        }
        write_tensors(out, self.manifest, values)


@dataclass
class Unable:
    """In the place of `Lessons`, of a job that cannot be revived."""

    found: Unsupported

    def revive(self, task: Revive) -> Rested:
        print(self.found, flush=True)
        return {"is": "rested", "cycle": task["cycle"], "reason": "unsupported", "why": self.found.why}


def lessons_of(
    archive: Path, terms: JobTerms, device: torch.device, base: Path | None = None
) -> Lessons | Unable:
    """Runs the job's code: may raise anything it raises, and Garbage when its model is not the approved one. `base`:
    the folder of the base model that the job names."""
    file = terms.file
    assert file.revival is not None  # or there would be no task
    if file.job.base is not None and base is None:
        what = (
            f"it adapts the base model {file.job.base!r}; start the reviver with --base {file.job.base}=PATH"
        )
        return Unable(Unsupported("no_base", what))
    task = load_task(archive, file.job.task, file.job.params)
    model = build_model(task, file, base)
    manifest = tensors.manifest_of(model, file.training.buffers)
    check_manifest(manifest, terms.manifest_sha256)
    check_base(base_digest(model, file.training.buffers), terms.base_sha256, base)
    try:
        return Lessons(reviver_of(task, model, file.revival, file.job.seed, device), manifest)
    except Unsupported as found:
        return Unable(found)


def reviver_of(
    task: Task, model: torch.nn.Module, settings: Revival, seed: int, device: torch.device | str = "cpu"
) -> Reviver:
    """Raises Unsupported for a job that cannot be revived. Runs the job's code, as `lessons_of`."""
    inputs = inputs_of(task, model)
    public = public_of(task, seed)
    if settings.synthesis == "public" and public is None:
        raise Unsupported("no_public", 'it says synthesis = "public", and its task has no method public()')
    return Reviver(model, inputs, settings, seed, device, public)


def _values(path: str, manifest: Manifest) -> Values:
    return {name: torch.from_numpy(array) for name, array in read_tensors(path, manifest).items()}
