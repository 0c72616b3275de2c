"""The life cycle: each entry is judged against everything before it, as the state machine of a federation.

job     submitted → version 0 → approved by silos → started ⇄ paused → completed | aborted
lease   issued → one update, one evaluation, one refusal, or released; or it ends with its silo's leaving or its job
update  received → merged into exactly one version | retired
revival performed → used by one aggregation | skipped
version aggregation.performed → model.published, numbers dense, each the child of the one before

Silos, certificates and the server itself are judged in `standing`, what is no longer kept in `retention`.
"""

from collections.abc import Callable
from typing import Any

from anabranch.errors import Refused
from anabranch.link import EVERYONE_ELSE
from anabranch.tlog.details import (
    AggregationPerformed,
    CertIssued,
    CertRenewed,
    JobChanged,
    JobDecision,
    JobStarted,
    JobSubmitted,
    LeaseIssued,
    LeaseReleased,
    ModelBest,
    ModelEncoded,
    ModelEvaluated,
    ModelExported,
    ModelPublished,
    RetentionPruned,
    ServerStarted,
    SiloEnrolled,
    SiloInvited,
    SiloPresence,
    SiloRevoked,
    UpdateReceived,
    UpdateRefused,
    UpdateRetired,
)
from anabranch.tlog.entry import Entry
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.wire import canonical
from anabranch.wire.statements import EvaluationStatement, UpdateStatement
from auditor.broken import Broken, require, same
from auditor.history import HandedOut, History, Update, Version
from auditor.jobs import Jobs, names_of, version_of
from auditor.leases import Leases
from auditor.merging import Merging, open_update
from auditor.retention import Retention
from auditor.reviving import Reviving
from auditor.signatures import Statement
from auditor.standing import Standing


class LifeCycle:
    """Reads the log in order. `fetch` gives an object by digest, or None; `find` takes what is wrong."""

    def __init__(
        self, fetch: Callable[[str, int], bytes | None], find: Callable[[int, Entry, str], None]
    ) -> None:
        self.history = History()
        self._find = find
        self._statement: Statement | None = None  # of the entry being judged
        self._last: tuple[int, Entry] | None = None
        standing = self._standing = Standing(self.history)
        jobs = self._jobs = Jobs(self.history, standing, fetch)
        leases = self._leases = Leases(self.history, standing, jobs)
        reviving = Reviving(self.history, jobs)
        self._handlers: dict[type, Callable[[int, Entry, Any], None]] = {
            SiloInvited: standing.invited,
            SiloEnrolled: standing.enrolled,
            SiloRevoked: standing.revoked,
            SiloPresence: standing.presence,
            CertIssued: standing.issued,
            CertRenewed: standing.renewed,
            ServerStarted: standing.server_started,
            JobSubmitted: jobs.submitted,
            JobDecision: jobs.decided,
            JobStarted: jobs.started,
            JobChanged: jobs.changed,
            LeaseIssued: leases.issued,
            LeaseReleased: leases.released,
            UpdateReceived: self._received,
            UpdateRefused: self._refused,
            UpdateRetired: self._retired,
            AggregationPerformed: Merging(self.history, jobs).performed,
            ModelPublished: self._published,
            ModelEncoded: self._encoded,
            ModelEvaluated: self._evaluated,
            ModelBest: self._best,
            ModelExported: self._exported,
            RevivalPerformed: reviving.performed,
            RevivalSkipped: reviving.skipped,
            RetentionPruned: Retention(self.history, jobs).pruned,
        }

    def see(self, index: int, entry: Entry, statement: Statement | None) -> None:
        """Judge one entry; `statement` is what its silo signed, if that is known to be good."""
        self._last, self._statement = (index, entry), statement
        history = self.history
        history.first = history.first or entry.time
        history.last, history.size = entry.time, history.size + 1
        self._standing.heard(index, entry.actor.id)
        handler = self._handlers.get(type(entry.detail))
        try:
            if handler is not None:
                handler(index, entry, entry.detail)
        except (Broken, Refused) as broken:
            self._find(index, entry, str(broken))

    def finish(self) -> None:
        """What must have happened by the end of the log: no checkpoint cuts a decision of the server in two."""
        for name, job in self.history.jobs.items():
            if job.head + 1 in job.steps:
                self._at_end(f"version {job.head + 1} of job {name} was made but never published")
            waiting = [revival for revival, one in job.revivals.items() if one.fate == "open"]
            if waiting and job.ended >= 0:
                self._at_end(f"job {name} has ended, and revival {waiting[0]} has no fate")
        for name, update in self.history.updates.items():
            if update.fate == "open" and self.history.jobs[update.job].ended >= 0:
                self._at_end(f"job {update.job} has ended, and update {name} has no fate")

    def _at_end(self, what: str) -> None:
        assert self._last is not None
        self._find(*self._last, f"is the last one: {what}")

    # updates

    def _received(self, index: int, entry: Entry, detail: UpdateReceived) -> None:
        job = self._jobs.running(entry)
        require(detail.update not in self.history.updates, f"update {detail.update} was received before")
        self.history.updates[detail.update] = Update(
            index,
            entry.time,
            entry.job or "",
            detail.silo,
            detail.version,
            detail.delta_sha256,
            detail.statement_sha256,
        )
        self._standing.active(detail.silo)
        self._jobs.approved(entry, job, detail.silo)
        lease = self._leases.spend(
            entry, detail.lease, detail.silo, "train", f"used for update {detail.update}"
        )
        require(
            lease.issued.version == detail.version,
            f"says its base is version {detail.version}, but its lease is for {lease.issued.version}",
        )
        late = job.head - detail.version
        require(detail.staleness == late, f"logs staleness {detail.staleness}, but its base is {late} behind")
        statement = self._statement
        if isinstance(statement, UpdateStatement):
            same("nonce", statement.nonce, lease.issued.nonce, "the lease")
            same("base", statement.base_sha256, lease.issued.view_sha256, "the lease")
            same("terms", statement.terms_sha256, job.submitted.terms_sha256, "the job")
            same("manifest", statement.manifest_sha256, job.submitted.manifest_sha256, "the job")

    def _refused(self, _: int, entry: Entry, detail: UpdateRefused) -> None:
        self.history.refused += 1
        known = self.history.updates.get(detail.update or "")
        if known is not None and (known.silo, known.job) == (detail.silo, entry.job):
            raise Broken(f"update {detail.update} was received before; it cannot be refused any more")
        statement = self._statement
        if isinstance(statement, UpdateStatement):  # the work of this lease is spent
            lease = self.history.leases.get(statement.lease)
            if lease is not None and lease.issued.silo == detail.silo:
                self.history.end(statement.lease, f"used for refused update {detail.update}")

    def _retired(self, _: int, entry: Entry, detail: UpdateRetired) -> None:
        update = open_update(self.history, detail.update)
        update.fate = "retired"
        require(update.silo == detail.silo, f"update {detail.update} is silo {update.silo}'s")

    # versions

    def _published(self, index: int, entry: Entry, detail: ModelPublished) -> None:
        job = self._jobs.running(entry)
        expected = job.head + 1
        require(detail.version == expected, f"publishes version {detail.version}; the next one is {expected}")
        files = detail.parameters_sha256, detail.optimizer_sha256, detail.ema_sha256
        job.versions.append(Version(index, entry.time, *files, detail.bytes))
        if detail.version == 0:
            same("version 0", detail.parameters_sha256, job.submitted.initial_sha256, "the job")
            require(detail.step is None, "version 0 comes from no aggregation")
            return
        require(
            detail.parent == detail.version - 1, f"version {detail.version} is a child of {detail.parent}"
        )
        step = job.steps.get(detail.version)
        require(
            step is not None and step[1].step == detail.step, f"no aggregation made version {detail.version}"
        )

    def _encoded(self, _: int, entry: Entry, detail: ModelEncoded) -> None:
        job = self._jobs.job(entry)
        version_of(job, detail.version)
        tier = detail.tier or EVERYONE_ELSE
        if job.terms is not None:
            packing = job.terms.file.views(detail.version).get(tier)
            said = packing and (packing.density, packing.values)
            require(
                said == (canonical.from_hexfloat(detail.density), detail.encoding),
                f"encodes version {detail.version} as the terms do not say",
            )
        views = job.views.setdefault(detail.version, {})
        require(tier not in views, f"encodes version {detail.version} once more")
        views[tier] = detail.view_sha256

    def _evaluated(self, _: int, entry: Entry, detail: ModelEvaluated) -> None:
        job = self._jobs.job(entry)
        version = version_of(job, detail.version)
        self._standing.active(detail.silo)
        version.evaluated.add(detail.silo)
        statement = self._statement
        if statement is None:  # private, left out of the export: the one evaluation lease it can be
            for name, lease in self.history.held.get((entry.job or "", detail.silo), {}).items():
                if (lease.issued.kind, lease.issued.version) == ("evaluate", detail.version):
                    self.history.end(name, "used for an evaluation")
                    return
            raise Broken(f"silo {detail.silo} holds no lease to evaluate version {detail.version}")
        if isinstance(statement, EvaluationStatement):
            lease = self._leases.spend(
                entry, statement.lease, detail.silo, "evaluate", "used for an evaluation"
            )
            same("nonce", statement.nonce, lease.issued.nonce, "the lease")
            same("version", detail.version, lease.issued.version, "the lease")
            names = names_of(job, detail.version, detail.silo)
            require(statement.view_sha256 in names, f"evaluates other bytes than version {detail.version}")

    def _best(self, _: int, entry: Entry, detail: ModelBest) -> None:
        job = self._jobs.job(entry)
        version = version_of(job, detail.version)
        job.best = detail.version
        require(bool(version.evaluated), f"calls version {detail.version} best, which no silo has evaluated")
        if job.terms is not None:
            same("metric", detail.metric, job.terms.file.evaluation.metric, "the job")

    def _exported(self, index: int, entry: Entry, detail: ModelExported) -> None:
        job = self._jobs.job(entry)
        version = version_of(job, detail.version)
        said = detail.version, detail.sha256, detail.selector
        job.handed_out.append(HandedOut(index, entry.time, entry.actor.id, *said))
        own = {version.parameters, version.ema}
        require(detail.sha256 in own, f"hands out {detail.sha256}, which is not version {detail.version}")
        require(detail.version not in job.pruned, f"hands out version {detail.version}, which was pruned")
