"""What the log must tell of silos that left a job or the federation, and of jobs that were aborted."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from anabranch.tlog.entry import parse_entry
from tests.simulation.history import Broken, History


class Leavers:
    """Reads the log in its order: nobody who has left is heard, and what of theirs was waiting is retired for it."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._waiting: dict[str, tuple[str, str]] = {}  # update → its silo and job
        self._due: dict[str, str] = {}  # update → why it must be retired
        self._retired: dict[str, str] = {}  # update → why it was
        self._revoked: set[str] = set()
        self._withdrawn: set[tuple[str, str]] = set()
        self._aborted: set[str] = set()

    def read(self, history: History) -> Counter[str]:
        """How often who left, and with it an update. Raises Broken."""
        entries = map(parse_entry, history.entries)
        return self.tell((str(entry.job), entry.type, entry.detail) for entry in entries)

    def tell(self, story: Iterable[tuple[str, str, Any]]) -> Counter[str]:
        """The same, of job, type and detail of each entry."""
        for job, type, detail in story:
            self._entry(job, type, detail)
        if self._due:
            raise Broken(f"left, and not retired for it: {self._due}")
        return self._told

    def _entry(self, job: str, type: str, detail: Any) -> None:
        match type:
            case "update.received":
                self._present(type, detail.silo, job)
                if (detail.silo, job) in self._withdrawn:
                    raise Broken(
                        f"{detail.silo} withdrew from {job}, and update {detail.update} was accepted"
                    )
                self._waiting[detail.update] = detail.silo, job
            case "lease.issued" | "model.evaluated":
                self._present(type, detail.silo, job)
            case "job.approved":
                self._present(type, detail.silo, job)
                self._withdrawn.discard((detail.silo, job))
            case "job.withdrawn":
                self._withdrawn.add((detail.silo, job))
                self._left("withdrawn", (detail.silo, job))
            case "job.aborted":
                self._aborted.add(job)
                for pair in set(self._waiting.values()):
                    if pair[1] == job:
                        self._left("job_ended", pair)
            case "update.retired":
                self._end(detail.update, detail.reason)
            case "aggregation.performed":
                for one in detail.inputs:
                    self._present(type, one.silo, job)
                    self._end(one.update, "merged")
            case "silo.revoked":  # its updates are retired before it, in the same transaction
                self._revoked.add(detail.silo)
                if left := [name for name, (silo, _) in self._waiting.items() if silo == detail.silo]:
                    raise Broken(f"{detail.silo} is revoked, and still waiting are {left}")
                if {self._retired.get(name) for name in detail.updates} - {"withdrawn"}:
                    raise Broken(
                        f"{detail.silo} is revoked, and its updates {detail.updates} were not withdrawn"
                    )
        if type in ("silo.revoked", "job.withdrawn", "job.aborted"):
            self._told[type] += 1

    def _present(self, what: str, silo: str, job: str) -> None:
        if silo in self._revoked or job in self._aborted:
            raise Broken(f"{what} of {silo} for {job}, which has left")

    def _left(self, reason: str, pair: tuple[str, str]) -> None:
        self._due |= {name: reason for name, whose in self._waiting.items() if whose == pair}

    def _end(self, name: str, how: str) -> None:
        self._waiting.pop(name)
        self._retired[name] = how
        if (due := self._due.pop(name, how)) != how:
            raise Broken(f"update {name} had to be retired as {due}, and is {how}")
        if how != "merged":
            self._told[f"update.retired({how})"] += 1
