"""Recompute every model version from the signed updates, bit by bit, with the arithmetic the server used.

One step takes what the log says it took: the head's files, the deltas in their logged order, the logged scalars. Its
result must have the published digests. Scalars that any machine computes alike are recomputed and must be equal; the
few that are not are taken from the log and checked within a tolerance (`anabranch.rules.profile`).

A version's files may also be the ones an earlier step has just reproduced. A step whose inputs are not there is not
recomputed. If the log says that they were pruned it rests on digests only, which is no fault: its inputs and its result
are named, as long as anybody keeps the log. If the log does not say so, something is missing.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anabranch.errors import AnabranchError, Refused
from anabranch.rules import step
from anabranch.rules.buffer import Buffer, Delta, Input, Plan, Snapshot, Source
from anabranch.rules.profile import NUMERIC_PROFILE, SCALAR_TOLERANCE
from anabranch.terms import JobTerms, parse_terms
from anabranch.tlog.details import AggregationPerformed
from anabranch.wire import canonical, limits
from anabranch.wire.manifest import Manifest, parse_manifest
from anabranch.wire.packed import PackedFile, open_tensors
from anabranch.wire.statements import parse_update
from anabranch.wire.tensors import TensorFile, TensorWriter
from auditor.differences import first_difference, update_difference, view_difference
from auditor.export import Export
from auditor.history import History, Job, Version
from auditor.retention import pruned_objects

PARTS = ("parameters", "optimizer", "ema")
_UPDATE = "delta of update "  # these travelled


@dataclass(frozen=True)
class Replayed:
    """What became of one step. Exactly one of `exact`, `differs`, `pruned` and `missing` holds."""

    job: str
    version: int
    exact: bool = False
    differs: str = ""  # the first difference, in words
    pruned: tuple[str, ...] = ()  # inputs that are not kept any more, says the log
    missing: tuple[str, ...] = ()  # what should be there and is not


@dataclass
class Replay:
    steps: list[Replayed] = field(default_factory=list)

    @property
    def exact(self) -> int:
        return sum(one.exact for one in self.steps)

    @property
    def different(self) -> list[Replayed]:
        return [one for one in self.steps if one.differs]

    @property
    def digest_only(self) -> list[Replayed]:
        return [one for one in self.steps if one.pruned]

    @property
    def missing(self) -> list[Replayed]:
        return [one for one in self.steps if one.missing]

    @property
    def ok(self) -> bool:
        """Every step is exact, or its inputs were pruned and the log says so."""
        return not self.different and not self.missing

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "replayed": self.exact + len(self.different),
            "exact": self.exact,
            "different": [
                {"job": one.job, "version": one.version, "first": one.differs} for one in self.different
            ],
            "digest_only": [
                {"job": one.job, "version": one.version, "pruned": list(one.pruned)}
                for one in self.digest_only
            ],
            "missing": [
                {"job": one.job, "version": one.version, "missing": list(one.missing)} for one in self.missing
            ],
        }


class _Missing(Exception):
    """What is needed is not there; the arguments name it."""


class _Pruned(Exception):
    """The same, and the log says that it is not kept any more."""


class _Differs(Exception):
    """The log says one thing, arithmetic another."""


def replay(
    export: Export,
    history: History,
    scratch: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    only: str | None = None,
) -> Replay:
    """Every step of every job (of the job `only`) of a verified export.

    Takes room for two versions with their optimizer state and average below `scratch` (default: the system's
    temporary directory), and for each version that is not in the export and that a later step mixes in. Nothing is
    raised for what is wrong with the export.
    """
    found, pruned = Replay(), pruned_objects(history)
    jobs = {name: job for name, job in history.jobs.items() if only in (None, name)}
    total = sum(len(job.steps) for job in jobs.values())
    for name, job in jobs.items():
        with tempfile.TemporaryDirectory(prefix="anabranch-replay-", dir=scratch) as directory:
            for one in _replay_job(export, history, pruned, name, job, Path(directory)):
                found.steps.append(one)
                progress("steps", len(found.steps), total)
    return found


@dataclass
class _Rerun:
    """One job on its way through its versions."""

    export: Export
    history: History
    terms: JobTerms
    manifest: Manifest
    keeps: Manifest | None  # layout of the optimizer state
    directory: Path
    pruned: Mapping[str, int]  # digest → the entry that says so
    read_by: Mapping[str, int]  # digest of a version that steps mix in → the last of them
    made: dict[str, Path] = field(default_factory=dict)  # digest → file of a step that was exact
    newest: dict[str, str] = field(default_factory=dict)  # silo → its merged update that was received last

    def find(self, digest: str) -> Path | None:
        return self.made.get(digest) or self.export.object_path(digest)

    def keep(self, number: int, made: dict[str, Path]) -> None:
        """The files of step `number`, which was exact: the next one may start from them, a later one mix them in."""
        later = {digest: path for digest, path in self.made.items() if self.read_by.get(digest, 0) > number}
        self.made = later | made

    def merged(self, logged: AggregationPerformed) -> None:
        for one in logged.inputs:
            known, updates = self.newest.get(one.silo), self.history.updates
            if known is None or updates[one.update].index > updates[known].index:
                self.newest[one.silo] = one.update

    def sweep(self) -> None:
        for path in set(self.directory.iterdir()) - set(self.made.values()):
            path.unlink()


def _replay_job(
    export: Export, history: History, pruned: Mapping[str, int], name: str, job: Job, directory: Path
) -> Iterator[Replayed]:
    try:
        rerun = _begin(export, history, pruned, job, directory)
    except (_Missing, Refused) as error:
        yield from (Replayed(name, version, missing=(str(error),)) for version in sorted(job.steps))
        return
    for version in sorted(job.steps):
        try:
            _step(rerun, job, version)
            yield Replayed(name, version, exact=True)
        except _Missing as missing:
            yield Replayed(name, version, missing=tuple(map(str, missing.args)))
        except _Pruned as pruned_inputs:
            yield Replayed(name, version, pruned=tuple(map(str, pruned_inputs.args)))
        except (_Differs, AnabranchError) as error:
            yield Replayed(name, version, differs=str(error))
        rerun.merged(job.steps[version][1])


def _begin(export: Export, history: History, pruned: Mapping[str, int], job: Job, directory: Path) -> _Rerun:
    terms = export.object(job.submitted.terms_sha256, limits.TERMS)
    manifest = export.object(job.submitted.manifest_sha256, limits.MANIFEST)
    if terms is None or manifest is None:
        raise _Missing("the job's terms" if terms is None else "the job's manifest")
    parsed, layout = parse_terms(terms), parse_manifest(manifest)
    keeps = step.optimizer_manifest(layout, parsed.file.aggregation.server_optimizer)
    return _Rerun(export, history, parsed, layout, keeps, directory, pruned, _read_by(export, job))


def _read_by(export: Export, job: Job) -> dict[str, int]:
    found = {}
    for number, (_, logged) in sorted(job.steps.items()):
        for term in logged.further or ():
            if term.version is not None and term.version < number:
                digest = job.versions[term.version].parameters
                if export.object_path(digest) is None:
                    found[digest] = number
    return found


def _step(rerun: _Rerun, job: Job, number: int) -> None:
    """Recompute version `number`. Returns if it is exact; raises _Differs, _Missing, _Pruned or Refused."""
    _, logged = job.steps[number]
    if logged.numeric_profile != NUMERIC_PROFILE:
        raise _Missing(f"arithmetic {logged.numeric_profile}, which this release does not know")
    head, published = job.versions[number - 1], job.versions[number]
    buffer = _buffer(rerun, job, number)
    scalars = _scalars(rerun, job, number, buffer)
    plan = step.plan(rerun.terms, buffer, scalars)
    _same_plan(logged, plan)
    made = _compute(rerun, job, head, plan, scalars)
    try:
        for part in PARTS:
            _same_file(rerun, part, made[part], getattr(published, part))
        _same_views(rerun, job, number, made)
        rerun.keep(number, {digest: path for path, digest in filter(None, made.values())})
    finally:
        rerun.sweep()


def _buffer(rerun: _Rerun, job: Job, number: int) -> Buffer:
    """As the server had it: record counts stand in the statements the silos signed."""
    logged = job.steps[number][1]
    inputs = []
    for order, one in enumerate(logged.inputs):
        examples = None
        if rerun.terms.file.silos.weighting == "examples":
            payload = rerun.export.object(rerun.history.updates[one.update].statement, limits.ENVELOPE)
            if payload is None:
                raise _Missing(f"statement of update {one.update}")
            examples = parse_update(payload).num_examples
        arrivals = (one.arrived or 0, one.windows or 0)
        inputs.append(Input(one.update, one.silo, one.base, one.staleness, examples, order, *arrivals))
    participants = logged.participants or ()
    cached = {}
    if rerun.terms.file.aggregation.strategy == "ca2fl":
        cached = {silo: rerun.newest[silo] for silo in participants if silo in rerun.newest}
    return Buffer(logged.base, tuple(inputs), participants, cached, logged.revival)


def _scalars(rerun: _Rerun, job: Job, number: int, buffer: Buffer) -> step.Scalars:
    """The logged scalars, after they were compared with our own."""
    logged = job.steps[number][1]
    rule = rerun.terms.file.aggregation
    if (logged.strategy, logged.optimizer["name"]) != (rule.strategy, rule.server_optimizer.name):
        raise _Differs(
            f"made by {logged.strategy} and {logged.optimizer['name']}, which the terms do not say"
        )
    previous = _floats(_optimizer(job, number - 1)) if number > 1 else {}
    ours = step.measure(rerun.terms, buffer, previous)
    theirs = step.Scalars(_floats(logged.scalars), _floats(_optimizer(job, number)))
    if theirs.optimizer != ours.optimizer:
        raise _Differs(f"optimizer scalars are {dict(theirs.optimizer)}, recomputed {dict(ours.optimizer)}")
    if theirs.strategy.keys() != ours.strategy.keys() or not all(
        math.isclose(theirs.strategy[name], value, rel_tol=SCALAR_TOLERANCE)
        for name, value in ours.strategy.items()
    ):
        raise _Differs(f"strategy scalars are {dict(theirs.strategy)}, recomputed {dict(ours.strategy)}")
    return theirs


def _optimizer(job: Job, number: int) -> dict[str, str]:
    return {name: text for name, text in job.steps[number][1].optimizer.items() if name != "name"}


def _floats(texts: Mapping[str, str]) -> dict[str, float]:
    return {name: canonical.from_hexfloat(text) for name, text in texts.items()}


def _same_plan(logged: AggregationPerformed, plan: Plan) -> None:
    for one, weight, coefficient in zip(logged.inputs, plan.weights, plan.coefficients, strict=True):
        ours = canonical.hexfloat(weight), canonical.hexfloat(coefficient)
        if (one.weight, one.coefficient) != ours:
            raise _Differs(
                f"update {one.update} has weight and coefficient {one.weight}, {one.coefficient}; recomputed {ours}"
            )
    said = [(one.update or one.version, one.coefficient) for one in logged.further or ()]
    found = [(*vars(term.source).values(), canonical.hexfloat(term.coefficient)) for term in plan.further]
    if said != found:
        raise _Differs(f"the further terms are {said}; recomputed {found}")


def _compute(
    rerun: _Rerun, job: Job, head: Version, plan: Plan, scalars: step.Scalars
) -> dict[str, tuple[Path, str] | None]:
    """The file and digest of each part, None for a part the job does not keep."""
    layouts = _layouts(rerun)
    sources = _sources(rerun, job, head, plan)
    with ExitStack() as files:
        opened = {name: _opened(files, rerun, name, *found) for name, found in sources.items()}
        writers = {
            part: files.enter_context(TensorWriter(rerun.directory / f"{part}.{plan.head + 1}", layout))
            for part, layout in layouts.items()
            if layout is not None
        }
        step.aggregate(
            rerun.terms,
            rerun.manifest,
            plan,
            {source: opened[_name(source, plan)] for source in plan.sources},
            optimizer=opened.get(_of_head("optimizer")),
            ema=opened.get(_of_head("ema")),
            scalars=scalars,
            outputs=step.Outputs(**writers),
        )
        digests = {part: writer.close() for part, writer in writers.items()}
    return {part: (writers[part].path, digests[part]) if part in writers else None for part in PARTS}


def _layouts(rerun: _Rerun) -> dict[str, Manifest | None]:
    average = rerun.terms.file.aggregation.ema is not None
    return {
        "parameters": rerun.manifest,
        "optimizer": rerun.keeps,
        "ema": rerun.manifest if average else None,
    }


def _sources(rerun: _Rerun, job: Job, head: Version, plan: Plan) -> dict[str, tuple[Path, Manifest]]:
    """Every file the step reads, by what it is. Raises _Missing or _Pruned naming all that are not there."""
    wanted = {
        _of_head(part): (getattr(head, part), layout)
        for part, layout in _layouts(rerun).items()
        if layout is not None and getattr(head, part) is not None
    }
    wanted |= {_name(source, plan): (_digest(rerun, job, source), rerun.manifest) for source in plan.sources}
    found = {name: (rerun.find(digest), layout) for name, (digest, layout) in wanted.items()}
    absent = [name for name, (path, _) in found.items() if path is None]
    unexplained = [name for name in absent if wanted[name][0] not in rerun.pruned]
    if unexplained:
        raise _Missing(*unexplained)
    if absent:
        raise _Pruned(*absent)
    return {name: (path, layout) for name, (path, layout) in found.items() if path is not None}


def _opened(
    files: ExitStack, rerun: _Rerun, name: str, path: Path, layout: Manifest
) -> TensorFile | PackedFile:
    update = rerun.history.updates[name.removeprefix(_UPDATE)] if name.startswith(_UPDATE) else None
    packing = rerun.terms.file.upload(update.base, update.silo) if update else None
    wrong = packing and update_difference(path, layout, packing)
    if wrong:
        raise _Differs(f"{name}: {wrong}")
    file = open_tensors(path, layout, packing)
    files.callback(file.close)
    return file


def _of_head(part: str) -> str:
    return f"{part} of the head"


def _name(source: Source, plan: Plan) -> str:
    if isinstance(source, Delta):
        return f"{_UPDATE}{source.update}"
    if isinstance(source, Snapshot):
        return _of_head("parameters") if source.version == plan.head else f"version {source.version}"
    return f"delta of revival {source.revival}"


def _digest(rerun: _Rerun, job: Job, source: Source) -> str:
    if isinstance(source, Delta):
        return rerun.history.updates[source.update].delta
    if isinstance(source, Snapshot):
        return job.versions[source.version].parameters
    return job.revivals[source.revival].detail.delta_sha256


def _same_file(rerun: _Rerun, part: str, made: tuple[Path, str] | None, published: str | None) -> None:
    if (made and made[1]) == published:
        return
    if made is None or published is None:
        raise _Differs(
            f"{part}: published {published}, but the terms keep {'none' if made is None else 'one'}"
        )
    theirs = rerun.export.object_path(published)
    layout = _layouts(rerun)[part]
    where = "" if theirs is None or layout is None else first_difference(made[0], theirs, layout)
    raise _Differs(f"{part}: published {published[:16]}…, recomputed {made[1][:16]}…{where}")


def _same_views(rerun: _Rerun, job: Job, number: int, made: Mapping[str, tuple[Path, str] | None]) -> None:
    """Of the version that was made and, with the first one, of version 0, where it is there."""
    ours = {number: made["parameters"][0] if made["parameters"] else None}
    if number == 1:
        ours[0] = rerun.export.object_path(job.submitted.initial_sha256)
    for version, path in ours.items():
        wrong = path and view_difference(job, version, rerun.terms, rerun.manifest, path, rerun.directory)
        if wrong:
            raise _Differs(f"version {version}: {wrong}")
