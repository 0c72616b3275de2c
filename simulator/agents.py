"""What a silo knows, holds and signs when the real server runs in virtual time: as `silo_agent` does, without its files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch import __version__
from anabranch.tlog.checkpoint import Checkpoint
from anabranch.tlog.entry import Actor
from anabranch.wire import canonical, dsse, identity, statements
from anabranch.wire.bundle import parse_bundle
from server.enrolment import SigningKey
from server.membership import Membership
from simulator.engine import START, Task
from simulator.memory import Planned

FEDERATION = "simulation.test"


@dataclass(frozen=True)
class Held:
    """A job as the server has it."""

    id: str
    planned: Planned
    digest: str  # of its terms


@dataclass(frozen=True)
class Agent:
    name: str
    actor: Actor
    update_key: Ed25519PrivateKey
    approver_key: Ed25519PrivateKey

    def approval(self, job: Held) -> bytes:
        """Signed by the silo's person, as everything else here by the silo."""
        statement = statements.DecisionStatement(
            federation=FEDERATION,
            job=job.id,
            terms_sha256=job.digest,
            decision="approve",
            silo=self.name,
            time=canonical.utc(START),
            revival=True if job.planned.terms.file.revival is not None else None,
        )
        return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), self.approver_key).encode()

    def update(self, job: Held, task: Task, view: str, data: bytes, examples: int, seen: Checkpoint) -> bytes:
        """`view`: what its base travelled as, by digest; `seen`: the newest tree head it has verified."""
        terms = job.planned.terms
        statement = statements.UpdateStatement(
            update=task.lease,
            federation=FEDERATION,
            job=job.id,
            lease=task.lease,
            nonce=task.nonce,
            sequence=int(task.issued_at * 1000),
            base_version=task.version,
            base_sha256=view,
            delta_sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            terms_sha256=job.digest,
            manifest_sha256=terms.manifest_sha256,
            num_examples=examples if terms.file.silos.weighting == "examples" else None,
            steps=task.steps,
            release=__version__,
            checkpoint=statements.SeenCheckpoint(size=seen.size, root=seen.root.hex()),
        )
        return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), self.update_key).encode()

    def evaluation(
        self, job: Held, task: Task, view: str, metrics: Mapping[str, float], records: int
    ) -> bytes:
        statement = statements.EvaluationStatement(
            federation=FEDERATION,
            job=job.id,
            lease=task.lease,
            nonce=task.nonce,
            version=task.version,
            view_sha256=view,
            split=task.split,
            metrics={name: canonical.hexfloat(value) for name, value in metrics.items()},
            num_examples=records,
        )
        return dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), self.update_key).encode()


def enrolled(membership: Membership, owner: Actor, name: str) -> Agent:
    """As `anabranch-silo enrol`: a token, a certificate request, two signing keys and the proof that they are held."""
    bundle = parse_bundle(membership.invite(owner, name)[0])
    csr = identity.csr(identity.new_tls_key())
    update, approver = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    message = identity.enrolment_proof_message(bundle.token_id, membership.begin(bundle.token_id), csr)
    keys = [
        SigningKey(purpose, key.public_key().public_bytes_raw(), key.sign(message))
        for purpose, key in (("update", update), ("approver", approver))
    ]
    chain, _ = membership.enrol(bundle.token_id, bytes.fromhex(bundle.token), csr, keys)
    leaf = identity.parse_chain(chain)[0]
    actor = Actor(
        id=f"spiffe://{FEDERATION}/silo/{name}/agent/0", auth="mtls", cert_sha256=identity.fingerprint(leaf)
    )
    return Agent(name, actor, update, approver)
