"""A federation told by hand, with the real formats and the real arithmetic.

A test changes the story before it is written (a lying server signs whatever it likes) or the files afterwards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.rules import step
from anabranch.rules.buffer import Plan
from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.terms import Aggregation, Job, JobFile, JobTerms, ServerOptimizer, Silos
from anabranch.tlog.checkpoint import Checkpoint
from anabranch.tlog.claim import PrivacyClaim
from anabranch.tlog.entry import Actor, Outcome, Sealed, Target, seal
from anabranch.wire import canonical, statements
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from tests.auditor import arithmetic
from tests.auditor.book import ADMIN, FED, ORIGIN, START, Book, key

MANIFEST = Manifest(
    (
        TensorSpec("norm.var", (3,), "buffer"),
        TensorSpec("weight", (4, 5), "trainable"),
        TensorSpec("bias", (4,), "trainable"),
    )
)


TERMS = JobFile(
    job=Job(name="digits", task="task.py:Digits"),
    silos=Silos(min=2, weighting="examples"),
    aggregation=Aggregation(
        staleness_exponent=0.3, server_optimizer=ServerOptimizer(name="adam", lr=0.05), ema=0.9
    ),
)


@dataclass
class Signed:
    """What an update is made of, so that a test can tell another story about it."""

    id: str
    silo: str
    lease: str
    base: int
    delta: str
    examples: int
    order: int


@dataclass
class Story:
    """Tells what happens, in order. Every method logs what the server would log."""

    book: Book
    terms: JobTerms | None = None
    head: int = -1
    heads: list[dict[str, Path]] = field(default_factory=list)
    optimizer: dict[str, float] = field(default_factory=dict)
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    approved: dict[str, int] = field(default_factory=dict)  # silo -> head at its newest approval
    deltas: dict[str, str] = field(default_factory=dict)  # update -> digest
    merged: list[tuple[int, Signed]] = field(default_factory=list)  # version, update
    count: int = 0
    generation: int = 0  # of the silos' keys

    # silos

    def agent(self, silo: str) -> Actor:
        return Actor(id=f"spiffe://{FED}/silo/{silo}/agent/0", auth="mtls")

    def update_key(self, silo: str) -> Ed25519PrivateKey:
        return key(ord(silo[-1]) + self.generation)

    def approver_key(self, silo: str) -> Ed25519PrivateKey:
        return key(100 + ord(silo[-1]) + self.generation)

    def enrol(self, silo: str, token: str = "t") -> None:
        token = f"{token}-{silo}"
        expires = canonical.utc(START + 3600)
        invited = {"silo": silo, "token_id": token, "expires": expires}
        self.book.log("silo.invited", Target(kind="silo", id=silo), invited, actor=ADMIN)
        keys = {"update": self.update_key(silo), "approver": self.approver_key(silo)}
        self.book.log(
            "silo.enrolled",
            Target(kind="silo", id=silo),
            {
                "silo": silo,
                "agent": 0,
                "token_id": token,
                "csr_sha256": "c" * 64,
                "keys": [
                    {"purpose": purpose, "public": private.public_key().public_bytes_raw().hex()}
                    for purpose, private in keys.items()
                ],
            },
            actor=Actor(id=self.agent(silo).id, auth="token"),
        )

    def revoke(self, silo: str, updates: Sequence[str] = ()) -> None:
        detail = {"silo": silo, "reason": "left", "certificates": [], "updates": list(updates)}
        self.book.log("silo.revoked", Target(kind="silo", id=silo), detail, actor=ADMIN)

    # the job

    def submit(self, file: JobFile = TERMS) -> None:
        rng = np.random.default_rng(0)
        arrays = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in MANIFEST.specs}
        initial = write_tensors(self.book.directory / "initial", MANIFEST, arrays)
        (self.book.directory / "initial").rename(self.book.path(initial))
        manifest, archive = self.book.keep(MANIFEST.encode()), self.book.keep(b"the code")
        self.terms = JobTerms(
            file=file, archive_sha256=archive, initial_sha256=initial, manifest_sha256=manifest
        )
        digests = self.terms.model_dump(include={"archive_sha256", "initial_sha256", "manifest_sha256"})
        detail = {"name": "digits", "terms_sha256": self.book.keep(self.terms.encode()), **digests}
        target = Target(kind="job", id="digits-1", sha256=self.terms.digest())
        self.book.log("job.submitted", target, detail, actor=ADMIN, job="digits-1")
        self.heads.append({"parameters": self.book.path(initial)})
        self.publish(parameters_sha256=initial)

    def decide(
        self,
        silo: str,
        decision: str = "approve",
        private: Ed25519PrivateKey | None = None,
        teaches: bool | None = True,
        **changed: Any,
    ) -> None:
        """`teaches`: its word on revival, where the job asks. `changed`: fields of the entry that differ."""
        digest, asked = self.terms.digest(), self.terms.file.revival is not None and decision == "approve"
        statement = statements.DecisionStatement(
            federation=FED,
            job="digits-1",
            terms_sha256=digest,
            decision=decision,
            silo=silo,
            time=canonical.utc(START),
            revival=teaches if asked else None,
        )
        self.approved.pop(silo, None)
        if decision == "approve":
            self.approved[silo] = self.head
        names = {"approve": "job.approved", "deny": "job.denied", "withdraw": "job.withdrawn"}
        self.book.log(
            names[decision],
            Target(kind="job", id="digits-1", sha256=digest),
            {"silo": silo, "terms_sha256": digest, "revival": statement.revival, **changed},
            actor=self.agent(silo),
            job="digits-1",
            sigs=[self.book.signed(statement.encode(), private or self.approver_key(silo))],
        )

    def start(self, silos: Sequence[str] = ("a", "b")) -> None:
        self.book.log(
            "job.started", Target(kind="job", id="digits-1"), {"silos": list(silos)}, job="digits-1"
        )

    def change(self, type: str) -> None:
        detail = {"reason": "versions", "head": self.head}
        self.book.log(type, Target(kind="job", id="digits-1"), detail, job="digits-1")

    def view(self, version: int) -> str:
        return canonical.sha256(self.heads[version]["parameters"].read_bytes())

    def lease(self, silo: str, kind: str = "train", version: int | None = None, **more: Any) -> str:
        """`more`: further fields of the entry; a group called "lease-own" is the lease's own."""
        self.count += 1
        version = self.head if version is None else version
        detail = {
            "lease": f"lease-{self.count}",
            "silo": silo,
            "kind": kind,
            "version": version,
            "view_sha256": self.view(version),
            "deadline": canonical.utc(START + 600),
            "nonce": f"{self.count:032x}",
            "local_steps": 5,
            **{name: value for name, value in more.items() if value is not None},
        }
        if detail.get("group") == "lease-own":
            detail["group"] = detail["lease"]
        self.book.log("lease.issued", Target(kind="lease", id=detail["lease"]), detail, job="digits-1")
        self.leases[detail["lease"]] = detail
        return detail["lease"]

    def update(
        self,
        silo: str,
        lease: str,
        private: Ed25519PrivateKey | None = None,
        seen: Checkpoint | None = None,
        claim: PrivacyClaim | None = None,
        **changed: Any,
    ) -> Signed:
        """`seen`: the silo's view of the log. `claim`: of jobs with [privacy].

        `changed`: fields of the entry that differ from what was signed.
        """
        self.count += 1
        name, issued = f"update-{self.count}", self.leases[lease]
        rng = np.random.default_rng(self.count)
        arrays = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in MANIFEST.specs}
        delta = write_tensors(self.book.directory / "delta", MANIFEST, arrays)
        (self.book.directory / "delta").rename(self.book.path(delta))
        seen = seen or Checkpoint(ORIGIN, self.book.frontier.size, self.book.frontier.root())
        statement = statements.UpdateStatement(
            update=name,
            federation=FED,
            job="digits-1",
            lease=lease,
            nonce=issued["nonce"],
            sequence=self.count,
            base_version=issued["version"],
            base_sha256=issued["view_sha256"],
            delta_sha256=delta,
            bytes=MANIFEST.file_bytes,
            terms_sha256=self.terms.digest(),
            manifest_sha256=MANIFEST.digest(),
            num_examples=10 + self.count if self.terms.file.silos.weighting == "examples" else None,
            steps=5,
            release="0.1.0",
            checkpoint=statements.SeenCheckpoint(size=seen.size, root=seen.root.hex()),
            privacy=claim,
        )
        detail = {
            "update": name,
            "silo": silo,
            "lease": lease,
            "sequence": self.count,
            "version": issued["version"],
            "staleness": self.head - issued["version"],
            "bytes": MANIFEST.file_bytes,
            "delta_sha256": delta,
            "statement_sha256": canonical.sha256(statement.encode()),
            "norm": canonical.hexfloat(1.5),
            **({"privacy": claim.model_dump(mode="json")} if claim else {}),
        }
        sig = self.book.signed(statement.encode(), private or self.update_key(silo))
        self.book.log(
            "update.received",
            Target(kind="update", id=name, sha256=delta),
            {**detail, **changed},
            actor=self.agent(silo),
            job="digits-1",
            sigs=[sig],
        )
        examples = statement.num_examples or 0
        return Signed(name, silo, lease, issued["version"], delta, examples, len(self.book.entries))

    def aggregate(
        self,
        updates: Sequence[Signed],
        scalars: step.Scalars | None = None,
        revival: str | None = None,
        **changed: Any,
    ) -> None:
        """The real arithmetic, on other `scalars` if given. `changed`: fields of the entry that differ."""
        self.deltas |= {one.id: one.delta for one in updates}
        rule = self.terms.file.aggregation
        buffer = arithmetic.buffer_of(rule, self.head, updates, self.merged, self.approved, revival)
        scalars = scalars or step.measure(self.terms, buffer, self.optimizer)
        plan = step.plan(self.terms, buffer, scalars)
        made = self.compute(plan, scalars)
        detail = {
            "version": self.head + 1,
            "base": self.head,
            "step": f"step-{self.head + 1}",
            "strategy": self.terms.file.aggregation.strategy,
            "inputs": [
                {
                    "update": one.id,
                    "silo": one.silo,
                    "delta_sha256": one.delta,
                    "base": one.base,
                    "staleness": self.head - one.base,
                    "weight": canonical.hexfloat(weight),
                    "coefficient": canonical.hexfloat(coefficient),
                    **({"arrived": said.arrived, "windows": said.windows} if said.windows else {}),
                }
                for one, said, weight, coefficient in zip(
                    updates, buffer.inputs, plan.weights, plan.coefficients, strict=True
                )
            ],
            "further": [
                {**vars(term.source), "coefficient": canonical.hexfloat(term.coefficient)}
                for term in plan.further
            ]
            or None,
            "participants": list(buffer.participants) or None,
            "revival": revival,
            "scalars": {name: canonical.hexfloat(value) for name, value in scalars.strategy.items()},
            "optimizer": {
                "name": self.terms.file.aggregation.server_optimizer.name,
                **{name: canonical.hexfloat(value) for name, value in scalars.optimizer.items()},
            },
            "absent": [],
            "closed_by": "full",
            "numeric_profile": NUMERIC_PROFILE,
        }
        target = Target(kind="model", id=f"digits-1/{self.head + 1}")
        self.book.log("aggregation.performed", target, {**detail, **changed}, job="digits-1")
        self.optimizer = dict(scalars.optimizer)
        self.merged += [(self.head + 1, one) for one in updates]
        self.heads.append({part: self.book.path(digest) for part, digest in made.items()})
        self.publish(
            parent=self.head,
            step=f"step-{self.head + 1}",
            **{f"{part}_sha256": digest for part, digest in made.items()},
        )

    def compute(self, plan: Plan, scalars: step.Scalars) -> dict[str, str]:
        return arithmetic.compute(self.book, self.terms, MANIFEST, plan, scalars, self.deltas, self.heads)

    def publish(self, **detail: Any) -> None:
        self.head += 1
        target = Target(kind="model", id=f"digits-1/{self.head}", sha256=detail["parameters_sha256"])
        known = {"version": self.head, "bytes": MANIFEST.file_bytes, **detail}
        self.book.log("model.published", target, known, job="digits-1")

    def prune(self, rule: str, days: float, versions: Sequence[tuple[int, int]], **changed: Any) -> None:
        """After so many more days the server forgets snapshots of `versions`, or (none) the deltas of all updates."""
        self.book.skipped += days * 86400
        spans = [{"first": first, "last": last} for first, last in versions]
        detail = {"kind": "snapshots" if versions else "deltas", "versions": spans}
        detail |= {"rule": rule, "seconds": {"snapshots": 7, "updates": 30}[rule] * 86400}
        target = Target(kind="job", id="digits-1")
        self.book.log("retention.pruned", target, {**detail, **changed}, job="digits-1")

    def retire(self, update: Signed, reason: str = "job_ended") -> None:
        detail = {"update": update.id, "silo": update.silo, "reason": reason}
        self.book.log("update.retired", Target(kind="update", id=update.id), detail, job="digits-1")

    def refuse(self, silo: str) -> None:
        detail = {"silo": silo, "code": "too_stale", "update": "update-late"}
        self.book.log(
            "update.refused",
            Target(kind="update", id="update-late"),
            detail,
            actor=self.agent(silo),
            job="digits-1",
            outcome=Outcome(status="denied", reason="too_stale"),
        )

    def evaluate(self, silo: str, lease: str, publish: bool = False) -> Sealed:
        issued, salt = self.leases[lease], bytes([7]) * 32
        facts = {"metrics": {"accuracy": canonical.hexfloat(0.75)}, "num_examples": 40}
        statement = statements.EvaluationStatement(
            federation=FED,
            job="digits-1",
            lease=lease,
            nonce=issued["nonce"],
            version=issued["version"],
            view_sha256=issued["view_sha256"],
            split="validation",
            **facts,
        )
        sealed = seal(facts, salt)
        sig = self.book.signed(statement.encode(), self.update_key(silo))
        if publish:
            opened = {"salt": salt.hex(), "fields": facts, "silo": silo}
            (self.book.directory / "sealed").mkdir(exist_ok=True)
            path = self.book.directory / "sealed" / f"{sealed.commit}.json"
            path.write_text(json.dumps(opened, sort_keys=True))
        else:
            self.book.path(sig.payload_sha256).unlink()
        self.book.log(
            "model.evaluated",
            Target(kind="model", id=f"digits-1/{issued['version']}", sha256=issued["view_sha256"]),
            {"version": issued["version"], "silo": silo, "split": "validation"},
            actor=self.agent(silo),
            job="digits-1",
            sealed=sealed,
            sigs=[sig],
        )
        return sealed

    # whole stories

    def begin(self, file: JobFile = TERMS) -> "Story":
        """Two silos, one approved and running job."""
        for silo in ("a", "b"):
            self.enrol(silo)
        self.submit(file)
        for silo in ("a", "b"):
            self.decide(silo)
        self.start()
        return self

    def whole(self, publish: bool = True) -> "Story":
        """Three versions with a stale update, a refusal, evaluations, an open lease, one update retired."""
        late = self.lease("b")
        first = [self.update("a", self.lease("a"))]
        self.aggregate(first)
        self.refuse("b")
        second = [self.update("a", self.lease("a")), self.update("b", late)]
        self.evaluate("a", self.lease("a", "evaluate"), publish)
        self.aggregate(second)
        self.aggregate([self.update("a", self.lease("a")), self.update("b", self.lease("b"))])
        left = self.update("a", self.lease("a"))
        self.lease("b")
        self.change("job.completed")
        self.retire(left)
        return self
