"""Jobs: submitted → version 0 → approved by silos → started ⇄ paused → completed | aborted."""

from collections.abc import Callable

from anabranch.errors import Refused
from anabranch.terms import JobTerms, parse_terms
from anabranch.tlog.details import JobChanged, JobDecision, JobStarted, JobSubmitted
from anabranch.tlog.entry import Entry
from anabranch.wire import limits
from auditor.broken import Broken, require
from auditor.history import Decision, History, Job, JobStatus, Version
from auditor.standing import Standing

DECIDED = {"job.approved": "approved", "job.denied": "denied", "job.withdrawn": "withdrawn"}
# entry type → statuses it applies to, status afterwards
CHANGES: dict[str, tuple[tuple[JobStatus, ...], JobStatus]] = {
    "job.paused": (("waiting", "running"), "paused"),
    "job.resumed": (("paused",), "running"),
    "job.completed": (("running",), "completed"),
    "job.aborted": (("waiting", "running", "paused"), "aborted"),
}
ENDED = ("completed", "aborted")


class Jobs:
    """The rules about jobs; the methods raise Broken. `index` is that of the entry, `fetch` gives an object or None."""

    def __init__(
        self, history: History, standing: Standing, fetch: Callable[[str, int], bytes | None]
    ) -> None:
        self._history = history
        self._standing = standing
        self._fetch = fetch

    def submitted(self, index: int, entry: Entry, detail: JobSubmitted) -> None:
        name = entry.job or ""
        require(name not in self._history.jobs, f"job {name} was submitted before")
        terms = self._terms(detail)
        self._history.jobs[name] = Job(index, entry.time, entry.actor.id, detail, terms)
        for field in ("archive_sha256", "initial_sha256", "manifest_sha256") if terms else ():
            said, approved = getattr(detail, field), getattr(terms, field)
            require(said == approved, f"logs {field} = {said}, but the terms silos approve say {approved}")

    def _terms(self, detail: JobSubmitted) -> JobTerms | None:
        try:
            data = self._fetch(detail.terms_sha256, limits.TERMS)
            return None if data is None else parse_terms(data)
        except Refused as refusal:
            raise Broken(f"its terms cannot be read: {refusal}") from refusal

    def decided(self, index: int, entry: Entry, detail: JobDecision) -> None:
        job = self.running(entry)
        self._standing.active(detail.silo)
        require(
            detail.terms_sha256 == job.submitted.terms_sha256,
            f"decides about the terms {detail.terms_sha256}, but the job has {job.submitted.terms_sha256}",
        )
        word, keyid = DECIDED[entry.type], entry.sigs[0].keyid if entry.sigs else ""
        job.decisions[detail.silo] = word
        job.teaching.discard(detail.silo)
        if word == "approved" and detail.revival:
            job.teaching.add(detail.silo)
        job.record.append(Decision(index, entry.time, detail.silo, word, keyid))
        if job.terms is not None:
            asked = word == "approved" and job.terms.file.revival is not None
            require(
                (detail.revival is not None) == asked, "says of revival what the job does not ask, or nothing"
            )
        if word != "approved":
            self._history.end_all(detail.silo, entry.job, f"ended when its silo had {word}")

    def started(self, index: int, entry: Entry, detail: JobStarted) -> None:
        job = self.running(entry)
        before = job.status if not job.resumed else "waiting"
        job.started, job.status, job.resumed = index, "running", False
        for silo in detail.silos:
            self.approved(entry, job, silo)
        least = job.terms.file.silos.min if job.terms else 0
        require(
            len(detail.silos) >= least, f"starts with {len(detail.silos)} silos, its terms ask for {least}"
        )
        require(before == "waiting", f"job {entry.job} was {before} before, not waiting")

    def changed(self, index: int, entry: Entry, detail: JobChanged) -> None:
        job = self.running(entry)
        allowed, status = CHANGES[entry.type]
        before, job.status, job.reason = job.status, status, detail.reason
        job.resumed = status == "running"
        if job.resumed:  # with too few approvals it waits again
            job.status = "running" if job.started >= 0 else "waiting"
        if status in ENDED:
            job.ended, job.ended_at = index, entry.time
            for silo in job.decisions:
                self._history.end_all(silo, entry.job, "ended with its job")
        require(detail.head == job.head, f"logs head {detail.head}, but the head is {job.head}")
        require(before in allowed, f"job {entry.job} was {before} before, not {' or '.join(allowed)}")

    def job(self, entry: Entry) -> Job:
        job = self._history.jobs.get(entry.job or "")
        if job is None:
            raise Broken(f"job {entry.job} was never submitted")
        return job

    def running(self, entry: Entry) -> Job:
        job = self.job(entry)
        if job.ended >= 0:
            raise Broken(f"job {entry.job} has ended before")
        return job

    def approved(self, entry: Entry, job: Job, silo: str) -> None:
        decision = job.decisions.get(silo, "not decided")
        if decision != "approved":
            raise Broken(f"silo {silo} has {decision}, not approved, the terms of job {entry.job}")


def names_of(job: Job, number: int, silo: str) -> set[str]:
    """What a lease of the silo may call a version: the digest of what the silo gets of it, if the terms are there."""
    version, made = version_of(job, number), job.views.get(number, {})
    if job.terms is None:
        return {version.parameters, *made.values()}
    file = job.terms.file
    if file.download(number, silo) is None:
        return {version.parameters}
    return {made[file.tier(silo)]} if file.tier(silo) in made else set()


def version_of(job: Job, number: int) -> Version:
    if number > job.head:
        raise Broken(f"version {number} was not published")
    return job.versions[number]
