"""The life cycle: each entry is judged against everything before it, as the state machine of a federation.

silo    invited → enrolled → revoked
job     submitted → version 0 → approved by silos → started → … → completed | aborted
lease   issued → one update, one evaluation, or released
update  received → merged into exactly one version | retired
version aggregation.performed → model.published, numbers dense, each the child of the one before
"""

from collections.abc import Callable
from typing import Any

from anabranch.errors import Refused
from anabranch.terms import JobTerms, parse_terms
from anabranch.tlog.details import (
    AggregationInput,
    AggregationPerformed,
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
    SiloEnrolled,
    SiloInvited,
    SiloRevoked,
    UpdateReceived,
    UpdateRefused,
    UpdateRetired,
)
from anabranch.tlog.entry import Entry
from anabranch.wire import limits
from anabranch.wire.statements import EvaluationStatement, UpdateStatement
from auditor.history import History, Job, Lease, Silo, Update, Version
from auditor.signatures import Statement

DECIDED = {"job.approved": "approved", "job.denied": "denied", "job.withdrawn": "withdrawn"}
ENDED = ("job.completed", "job.aborted")


class _Broken(Exception):
    """The entry cannot follow what is before it."""


class LifeCycle:
    """Reads the log in order. `fetch` gives an object by digest, or None; `find` takes what is wrong."""

    def __init__(
        self, fetch: Callable[[str, int], bytes | None], find: Callable[[int, Entry, str], None]
    ) -> None:
        self.history = History()
        self._fetch = fetch
        self._find = find
        self._index = -1  # of the entry being judged, and what its silo signed
        self._statement: Statement | None = None
        self._last: Entry | None = None
        self._handlers: dict[type, Callable[[Entry, Any], None]] = {
            SiloInvited: self._invited,
            SiloEnrolled: self._enrolled,
            SiloRevoked: self._revoked,
            JobSubmitted: self._submitted,
            JobDecision: self._decided,
            JobStarted: self._started,
            JobChanged: self._changed,
            ModelPublished: self._published,
            ModelEncoded: self._encoded,
            ModelEvaluated: self._evaluated,
            ModelBest: self._best,
            ModelExported: self._exported,
            LeaseIssued: self._issued,
            LeaseReleased: self._released,
            UpdateReceived: self._received,
            UpdateRefused: self._refused,
            UpdateRetired: self._retired,
            AggregationPerformed: self._performed,
        }

    def see(self, index: int, entry: Entry, statement: Statement | None) -> None:
        """Judge one entry; `statement` is what its silo signed, if that is known to be good."""
        self._index, self._last, self._statement = index, entry, statement
        try:
            handler = self._handlers.get(type(entry.detail))
            if handler is not None:
                handler(entry, entry.detail)
        except _Broken as broken:
            self._find(index, entry, str(broken))

    def finish(self) -> None:
        """What must have happened by the end of the log: no checkpoint cuts a decision of the server in two."""
        for name, job in self.history.jobs.items():
            if job.head + 1 in job.steps:
                self._at_end(f"version {job.head + 1} of job {name} was made but never published")
        for name, update in self.history.updates.items():
            if update.fate == "open" and self.history.jobs[update.job].ended:
                self._at_end(f"job {update.job} has ended, and update {name} has no fate")

    def _at_end(self, what: str) -> None:
        assert self._last is not None
        self._find(self._index, self._last, f"is the last one: {what}")

    # silos

    def _invited(self, _: Entry, detail: SiloInvited) -> None:
        tokens = self.history.silos.setdefault(detail.silo, Silo()).tokens
        _require(detail.token_id not in tokens, f"token {detail.token_id} was issued before")
        tokens[detail.token_id] = ""

    def _enrolled(self, _: Entry, detail: SiloEnrolled) -> None:
        """One request redeems a token. The same request again is the same enrolment: its answer was lost."""
        silo = self.history.silos.setdefault(detail.silo, Silo())
        request = silo.tokens.get(detail.token_id)
        _require(request is not None, f"silo {detail.silo} was not invited with token {detail.token_id}")
        _require(request in ("", detail.csr_sha256), f"token {detail.token_id} was used before, by another")
        silo.tokens[detail.token_id] = detail.csr_sha256
        silo.active = True

    def _revoked(self, _: Entry, detail: SiloRevoked) -> None:
        self._silo(detail.silo).active = False
        for update in detail.updates:
            _require(update in self.history.updates, f"retires update {update}, which was never received")

    # jobs

    def _submitted(self, entry: Entry, detail: JobSubmitted) -> None:
        name = entry.job or ""
        _require(name not in self.history.jobs, f"job {name} was submitted before")
        terms = self._terms(detail)
        self.history.jobs[name] = Job(detail, terms)
        for field in ("archive_sha256", "initial_sha256", "manifest_sha256") if terms else ():
            said, approved = getattr(detail, field), getattr(terms, field)
            _require(said == approved, f"logs {field} = {said}, but the terms silos approve say {approved}")

    def _terms(self, detail: JobSubmitted) -> JobTerms | None:
        try:
            data = self._fetch(detail.terms_sha256, limits.TERMS)
            return None if data is None else parse_terms(data)
        except Refused as refusal:
            raise _Broken(f"its terms cannot be read: {refusal}") from refusal

    def _decided(self, entry: Entry, detail: JobDecision) -> None:
        job = self._running(entry)
        self._active(detail.silo)
        _require(
            detail.terms_sha256 == job.submitted.terms_sha256,
            f"decides about the terms {detail.terms_sha256}, but the job has {job.submitted.terms_sha256}",
        )
        job.decisions[detail.silo] = DECIDED[entry.type]

    def _started(self, entry: Entry, detail: JobStarted) -> None:
        job = self._running(entry)
        job.started = True
        for silo in detail.silos:
            self._approved(entry, job, silo)
        least = job.terms.file.silos.min if job.terms else 0
        _require(
            len(detail.silos) >= least, f"starts with {len(detail.silos)} silos, its terms ask for {least}"
        )

    def _changed(self, entry: Entry, detail: JobChanged) -> None:
        job = self._running(entry)
        job.ended = entry.type in ENDED
        _require(detail.head == job.head, f"logs head {detail.head}, but the head is {job.head}")

    # leases

    def _issued(self, entry: Entry, detail: LeaseIssued) -> None:
        job = self._running(entry)
        _require(detail.lease not in self.history.leases, f"lease {detail.lease} was issued before")
        self.history.leases[detail.lease] = Lease(entry.job or "", detail)
        _require(job.started, f"job {entry.job} has not started")
        self._active(detail.silo)
        self._approved(entry, job, detail.silo)
        version = _version(job, detail.version)
        views = {version.parameters, *job.views.get(detail.version, ())}
        _require(detail.view_sha256 in views, f"hands out {detail.view_sha256} as version {detail.version}")

    def _released(self, entry: Entry, detail: LeaseReleased) -> None:
        self._spend(entry, detail.lease, detail.silo, None, "released")

    def _spend(self, entry: Entry, name: str, silo: str, kind: str | None, how: str) -> Lease:
        """A lease ends once, by what it was issued for. `kind` None: of either kind."""
        lease = self.history.leases.get(name)
        if lease is None:
            raise _Broken(f"lease {name} was never issued")
        _require(
            (lease.job, lease.issued.silo) == (entry.job, silo),
            f"lease {name} was issued to silo {lease.issued.silo} for job {lease.job}",
        )
        _require(kind in (None, lease.issued.kind), f"lease {name} was issued to {lease.issued.kind}")
        _require(not lease.spent, f"lease {name} was {lease.spent} before")
        lease.spent = how
        return lease

    # updates

    def _received(self, entry: Entry, detail: UpdateReceived) -> None:
        job = self._running(entry)
        _require(detail.update not in self.history.updates, f"update {detail.update} was received before")
        self.history.updates[detail.update] = Update(
            self._index,
            entry.job or "",
            detail.silo,
            detail.version,
            detail.delta_sha256,
            detail.statement_sha256,
        )
        self._active(detail.silo)
        self._approved(entry, job, detail.silo)
        lease = self._spend(entry, detail.lease, detail.silo, "train", f"used for update {detail.update}")
        _require(
            lease.issued.version == detail.version,
            f"says its base is version {detail.version}, but its lease is for {lease.issued.version}",
        )
        late = job.head - detail.version
        _require(
            detail.staleness == late, f"logs staleness {detail.staleness}, but its base is {late} behind"
        )
        statement = self._statement
        if isinstance(statement, UpdateStatement):
            _same("nonce", statement.nonce, lease.issued.nonce, "the lease")
            _same("base", statement.base_sha256, lease.issued.view_sha256, "the lease")
            _same("terms", statement.terms_sha256, job.submitted.terms_sha256, "the job")
            _same("manifest", statement.manifest_sha256, job.submitted.manifest_sha256, "the job")

    def _refused(self, entry: Entry, detail: UpdateRefused) -> None:
        self.history.refused += 1
        known = self.history.updates.get(detail.update or "")
        if known is not None and (known.silo, known.job) == (detail.silo, entry.job):
            raise _Broken(f"update {detail.update} was received before; it cannot be refused any more")

    def _retired(self, entry: Entry, detail: UpdateRetired) -> None:
        update = self._open(detail.update)
        update.fate = "retired"
        _require(update.silo == detail.silo, f"update {detail.update} is silo {update.silo}'s")

    def _open(self, name: str) -> Update:
        update = self.history.updates.get(name)
        if update is None:
            raise _Broken(f"update {name} was never received")
        _require(update.fate == "open", f"update {name} was {update.fate} before; it counts once")
        return update

    # versions

    def _performed(self, entry: Entry, detail: AggregationPerformed) -> None:
        job = self._running(entry)
        _require(
            (detail.base, detail.version) == (job.head, job.head + 1),
            f"makes version {detail.version} from {detail.base}, but the head is {job.head}",
        )
        _require(detail.version not in job.steps, f"version {detail.version} was made before")
        job.steps[detail.version] = self._index, detail
        for one in detail.inputs:
            self._merge(entry, detail, one)

    def _merge(self, entry: Entry, detail: AggregationPerformed, one: AggregationInput) -> None:
        update = self._open(one.update)
        update.fate = "merged"
        found = update.job, update.silo, update.delta, update.base
        _require(
            found == (entry.job, one.silo, one.delta_sha256, one.base),
            f"uses update {one.update} as another one than was received",
        )
        late = detail.base - update.base
        _require(
            one.staleness == late, f"says update {one.update} is {one.staleness} versions late, it is {late}"
        )

    def _published(self, entry: Entry, detail: ModelPublished) -> None:
        job = self._running(entry)
        expected = job.head + 1
        _require(
            detail.version == expected, f"publishes version {detail.version}; the next one is {expected}"
        )
        version = Version(detail.parameters_sha256, detail.optimizer_sha256, detail.ema_sha256, detail.bytes)
        job.versions.append(version)
        if detail.version == 0:
            _same("version 0", detail.parameters_sha256, job.submitted.initial_sha256, "the job")
            _require(detail.step is None, "version 0 comes from no aggregation")
            return
        _require(
            detail.parent == detail.version - 1, f"version {detail.version} is a child of {detail.parent}"
        )
        step = job.steps.get(detail.version)
        _require(
            step is not None and step[1].step == detail.step, f"no aggregation made version {detail.version}"
        )

    def _encoded(self, entry: Entry, detail: ModelEncoded) -> None:
        job = self._job(entry)
        _version(job, detail.version)
        job.views.setdefault(detail.version, set()).add(detail.view_sha256)

    def _evaluated(self, entry: Entry, detail: ModelEvaluated) -> None:
        job = self._job(entry)
        version = _version(job, detail.version)
        self._active(detail.silo)
        statement = self._statement
        if isinstance(statement, EvaluationStatement):
            lease = self._spend(entry, statement.lease, detail.silo, "evaluate", "used for an evaluation")
            _same("nonce", statement.nonce, lease.issued.nonce, "the lease")
            _same("version", detail.version, lease.issued.version, "the lease")
            views = {version.parameters, *job.views.get(detail.version, ())}
            _require(statement.view_sha256 in views, f"evaluates other bytes than version {detail.version}")

    def _best(self, entry: Entry, detail: ModelBest) -> None:
        _version(self._job(entry), detail.version)

    def _exported(self, entry: Entry, detail: ModelExported) -> None:
        version = _version(self._job(entry), detail.version)
        own = {version.parameters, version.ema}
        _require(detail.sha256 in own, f"hands out {detail.sha256}, which is not version {detail.version}")

    # what must be there already

    def _silo(self, name: str) -> Silo:
        silo = self.history.silos.get(name)
        if silo is None:
            raise _Broken(f"silo {name} was never invited")
        return silo

    def _active(self, name: str) -> None:
        _require(self._silo(name).active, f"silo {name} is not enrolled, or was revoked before")

    def _job(self, entry: Entry) -> Job:
        job = self.history.jobs.get(entry.job or "")
        if job is None:
            raise _Broken(f"job {entry.job} was never submitted")
        return job

    def _running(self, entry: Entry) -> Job:
        job = self._job(entry)
        _require(not job.ended, f"job {entry.job} has ended before")
        return job

    def _approved(self, entry: Entry, job: Job, silo: str) -> None:
        decision = job.decisions.get(silo, "not decided")
        _require(
            decision == "approved", f"silo {silo} has {decision}, not approved, the terms of job {entry.job}"
        )


def _version(job: Job, number: int) -> Version:
    _require(number <= job.head, f"version {number} was not published")
    return job.versions[number]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


def _same(what: str, signed: object, expected: object, whose: str) -> None:
    _require(signed == expected, f"the {what} is {signed}; {whose} says {expected}")
