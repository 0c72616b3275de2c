"""Which jobs may run here. The default is no.

A job is allowed by its terms: their digest stands in policy.toml, or a person approved them, which leaves a decision
file. Either way the silo signs the decision and the server logs it; the files here, not the server's answer, decide
what this agent runs.
"""

import fcntl
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, plain, wording
from anabranch.terms import JobFile, JobTerms, parse_terms
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical, dsse, statements
from anabranch.wire.manifest import Manifest, parse_manifest
from silo_agent import receipts
from silo_agent.identity import SiloIdentity
from silo_agent.messages import OfferedJob
from silo_agent.policy import Policy, admit
from silo_agent.receipts import LogView

Decision = Literal["approve", "deny", "withdraw"]
LOGGED: dict[Decision, str] = {"approve": "job.approved", "deny": "job.denied", "withdraw": "job.withdrawn"}
STATUS: dict[Decision, str] = {"approve": "approved", "deny": "denied", "withdraw": "withdrawn"}

_VERSION = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
_VERSION_SECONDS = 60.0
SHOWN = 2000  # characters of one line a person approves
REVIVAL = "silos' newest models teach the shared one, at the server; this site's only if [run] allow_revival says so"


class Server(Protocol):
    def decide(self, job: str, envelope: bytes, seen: int) -> Receipt: ...


@dataclass(frozen=True)
class Proposal:
    """A job whose terms were checked: they are the ones the log names, and the manifest is the terms'."""

    job: OfferedJob
    terms: JobTerms
    digest: str  # of the terms
    manifest: Manifest | None  # None when the server does not tell sizes before the first task


def examine(job: OfferedJob, log: LogView) -> Proposal:
    """Believe nothing of an offered job that the log does not prove. Raises Refused, Untrusted, Unavailable."""
    terms = parse_terms(job.terms)
    receipts.require(
        log.accept(job.submitted),
        "job.submitted",
        terms_sha256=terms.digest(),
        archive_sha256=terms.archive_sha256,
        initial_sha256=terms.initial_sha256,
        manifest_sha256=terms.manifest_sha256,
    )
    manifest = parse_manifest(job.manifest) if job.manifest else None
    if manifest is not None and canonical.sha256(job.manifest) != terms.manifest_sha256:
        raise Refused(Reason.DIGEST_MISMATCH, f"job {job.id}: the manifest is not the one its terms name")
    return Proposal(job, terms, terms.digest(), manifest)


NOT_OURS = (ValueError, KeyError, TypeError, RecursionError)  # JSON that we have not written


class Decisions:
    """What people at this silo decided: one file per terms digest, written by any process, read by the agent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def record(self, digest: str, job: str, decision: Decision) -> None:
        """Killed after this and before the server was told: the running agent tells it."""
        durable.make_dir(self._directory, 0o700)
        text = json.dumps({"decision": decision, "job": job, "time": canonical.utc(time.time())})
        durable.write(self._path(digest), text.encode(), 0o600)

    def of(self, digest: str) -> Decision | None:
        """Raises Corrupt when the file is damaged: a guess could run what nobody approved."""
        path = self._path(digest)
        try:
            decision = json.loads(path.read_bytes())["decision"]
        except FileNotFoundError:
            return None
        except (OSError, *NOT_OURS) as error:
            raise Corrupt(f"{path} is damaged: {error}; decide again") from error
        for known in LOGGED:
            if decision == known:
                return known
        raise Corrupt(f"{path} says {str(decision)[:80]!r}; decide again")

    def known(self, reference: str) -> tuple[str, str] | None:
        """Terms digest and id of a job decided on before, by its id or the beginning of its digest."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                job = str(json.loads(path.read_bytes())["job"])
            except (OSError, *NOT_OURS):
                continue  # damaged: `of` says so to whoever needs it
            if reference == job or (len(reference) >= 8 and path.stem.startswith(reference)):
                return path.stem, job
        return None

    def stamp(self) -> str:
        """Changes whenever a decision does."""
        try:
            files = sorted((p.name, p.stat().st_mtime_ns) for p in self._directory.glob("*.json"))
        except FileNotFoundError:  # replaced while we looked: the next look sees the new one
            return ""
        return repr(files)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """One process at a time records and announces, so that no decision is announced twice."""
        durable.make_dir(self._directory, 0o700)
        with open(self._directory / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.json"


def standing(proposal: Proposal, policy: Policy, decisions: Decisions) -> Decision | None:
    """What this silo has decided about these terms; a person's word stands above the policy's list."""
    decided = decisions.of(proposal.digest)
    if decided is None and proposal.digest in policy.approve.terms:
        return "approve"
    return decided


def check_runnable(proposal: Proposal, policy: Policy, interpreter: Path) -> None:
    """Whether an approved job could run here at all. Raises Refused(POLICY, NOT_FOUND) naming what is missing."""
    bound = admit(policy, proposal.terms, proposal.manifest.file_bytes if proposal.manifest else None)
    wanted = proposal.terms.file.job
    if not bound.data.path.exists():
        where = f"policy.toml [data.{wanted.data}]: {bound.data.path}"
        raise Refused(Reason.NOT_FOUND, f"{where} does not exist on this machine")
    if wanted.base is not None and (lacking := policy.models[wanted.base].lacks(wanted.base)):
        raise Refused(Reason.NOT_FOUND, ": ".join(lacking))
    missing = missing_requires(interpreter, proposal.terms.file.requires)
    if missing:
        raise Refused(
            Reason.NOT_FOUND,
            f"job {proposal.terms.file.job.name} needs {'; '.join(missing)}, under {interpreter}; "
            "install it there (the agent never installs anything), or name another interpreter in policy.toml [run]",
        )


def missing_requires(interpreter: Path, requires: Sequence[str]) -> list[str]:
    """Which required distributions the interpreter lacks, each with what it has instead."""
    missing = []
    for text in requires:
        try:
            needed = wanted(text)
        except Refused as error:
            missing.append(str(error))
            continue
        if needed is None:
            continue
        found = _installed(interpreter, needed.name)
        if found is None:
            missing.append(f"{text}, which is not installed")
        elif not needed.specifier.contains(found, prereleases=True):
            missing.append(f"{text}, but {found} is installed")
    return missing


def wanted(text: str) -> Requirement | None:
    """What a job asks for; None when its marker says that it is not for this machine. Raises Refused(MALFORMED)."""
    try:
        requirement = Requirement(text)
        here = requirement.marker is None or requirement.marker.evaluate()
    except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName) as error:
        raise Refused(
            Reason.MALFORMED, f"{text[:200]!r}, which is no requirement such as 'monai>=1.4'"
        ) from error
    return requirement if here else None


def _installed(interpreter: Path, name: str) -> Version | None:
    try:
        done = subprocess.run(
            [str(interpreter), "-P", "-s", "-c", _VERSION, name],  # sees what the training process will see
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
        return Version(done.stdout.strip()) if done.returncode == 0 else None
    except InvalidVersion:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(
            Reason.POLICY, f"policy.toml [run] interpreter: {interpreter} does not run: {wording(error)}"
        ) from error


def revival_of(proposal: Proposal, decision: Decision, policy: Policy) -> bool | None:
    """Whether this silo's models may teach; None: the decision has nothing to say of it."""
    asked = proposal.terms.file.revival is not None and decision == "approve"
    return policy.run.allow_revival if asked else None


def announced(proposal: Proposal, decision: Decision, policy: Policy) -> bool:
    """Whether the server knows."""
    told = proposal.job.decision, proposal.job.revival
    return told == (STATUS[decision], bool(revival_of(proposal, decision, policy)))


def announce(
    server: Server,
    who: SiloIdentity,
    log: LogView,
    proposal: Proposal,
    decision: Decision,
    policy: Policy,
    journal: Path,
) -> None:
    """Sign the decision and have it logged. Raises Refused, Unavailable; repeating it is harmless."""
    revival = revival_of(proposal, decision, policy)
    statement = statements.DecisionStatement(
        federation=who.federation.federation,
        job=proposal.job.id,
        terms_sha256=proposal.digest,
        decision=decision,
        silo=who.silo,
        time=canonical.utc(time.time()),
        revival=revival,
    )
    envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), who.approver_key)
    receipt = server.decide(proposal.job.id, envelope.encode(), log.seen())
    entry = log.accept(receipt)
    receipts.require(entry, LOGGED[decision], silo=who.silo, terms_sha256=proposal.digest, revival=revival)
    durable.make_dir(journal.parent)
    receipts.journal(journal, receipt)


def describe(proposal: Proposal, silo: str) -> list[tuple[str, str]]:
    """What a person at `silo` approves, as label and text. None of it can hide the rest: a job's owner wrote most of it."""
    file, terms = proposal.terms.file, proposal.terms
    t, a = file.training, file.aggregation
    size = _size(proposal.manifest.file_bytes) if proposal.manifest else "not known before the first task"
    counts = "sent to the server and logged" if file.silos.weighting == "examples" else "never sent"
    told = [
        ("job", f"{file.job.name} ({proposal.job.id}), {proposal.job.status}"),
        ("terms", proposal.digest),
        ("code", f"{file.job.task} of archive {terms.archive_sha256}"),
        ("kind", "managed training loop" if file.job.managed else "a script with its own training loop"),
        ("parameters", ", ".join(f"{k} = {v}" for k, v in sorted(file.job.params.items())) or "none"),
        ("requires", ", ".join(file.requires) or "nothing beyond the agent's own packages"),
        ("trains", _trained(file)),
        *([("base model", f"{file.job.base!r}, never sent")] if file.job.base is not None else []),
        *([("frozen", f"SHA-256 {terms.base_sha256}")] if terms.base_sha256 is not None else []),
        ("your data", f"{file.job.data!r}, split {file.evaluation.split!r} for evaluations"),
        (
            "per cycle",
            f"{file.steps} steps of {t.batch_size} records, {t.optimizer.name} at lr {t.optimizer.lr}",
        ),
        (
            "you send",
            f"one update of {size}{_part(file, silo)} per cycle; buffers: {t.buffers}; scores of every evaluation",
        ),
        ("record counts", counts),
        ("aggregation", f"{a.strategy} of {a.buffer} updates, {file.silos.min} or more silos"),
        *([("revival", REVIVAL)] if file.revival is not None else []),
        ("ends", f"after {file.stop.versions} versions"),
        ("updates kept", f"{file.retention.updates} after the end or the last release, at the server"),
    ]
    return [(label, plain(text, SHOWN)) for label, text in told]


def _trained(file: JobFile) -> str:
    adapter = file.adapter
    if adapter is None or adapter.kind == "full":
        return "all that the task leaves trainable"
    heads = f"{', '.join(adapter.heads)} whole" if adapter.heads else "no module whole"
    if adapter.kind == "head":
        return heads
    targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
    half = ", B alone" if adapter.freeze_a else ""
    lower = "".join(f", {rank} at {silo}" for silo, rank in sorted((adapter.ranks or {}).items()))
    where = targets or "what peft takes for the architecture"
    return f"LoRA of rank {adapter.rank}{lower}{half} at {where}; {heads}"


def _part(file: JobFile, silo: str) -> str:
    packing, link = file.upload(0, silo), file.link
    falls = link is not None and link.upload_decay < 1
    if packing is None and not falls:
        return ""
    density, values, chunk = (packing.density, packing.values, packing.chunk) if packing else (1.0, "fp32", 0)
    chunks = f" of every {chunk} entries" if chunk else ""
    later = f", times {link.upload_decay:g} every {link.decay_every} versions" if link and falls else ""
    kept = "" if file.feedback is None else " (what it leaves out stays on this disk, for the next one)"
    return f", of it the largest {density:.3%}{chunks} as {values}{later}{kept}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
