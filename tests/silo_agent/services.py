"""The services of the other end, each saying what a test's World wants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography import x509

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import Target
from anabranch.v1 import (
    audit_pb2,
    enrolment_pb2,
    update_pb2,
)
from anabranch.v1 import federation_pb2 as pb
from anabranch.wire import canonical, codec, dsse, identity, statements, status

if TYPE_CHECKING:
    from tests.silo_agent.world import World

SILO = "north"


@dataclass
class Upload:
    data: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    decided: update_pb2.SubmitReply | None = None


def signature(envelope: dsse.Envelope) -> dict[str, str]:
    import base64

    first = envelope.signatures[0]
    return {
        "keyid": first.keyid,
        "payloadType": envelope.payload_type,
        "sig": base64.b64encode(first.sig).decode(),
        "payload_sha256": canonical.sha256(envelope.payload),
    }


class _Answers:
    """Turns what a handler raises into what the wire says, as the real transport does."""

    def __init__(self, world: World) -> None:
        self.world = world

    def guard(self, method: str, context: Any) -> None:
        if method in self.world.refuse:
            code, message, metadata = status.to_status(self.world.refuse[method])
            context.set_trailing_metadata(metadata)
            context.abort(code, message)


class Enrolment(_Answers):
    def Begin(self, request: Any, context: Any) -> Any:
        self.guard("Begin", context)
        return enrolment_pb2.BeginReply(nonce=b"n" * 16)

    def Enrol(self, request: Any, context: Any) -> Any:
        self.guard("Enrol", context)
        world = self.world
        if world.tokens.setdefault(request.token_id, request.csr) != request.csr:
            world.refuse["once"] = Refused(Reason.BAD_TOKEN, "the token has been used")
            self.guard("once", context)
        message = identity.enrolment_proof_message(request.token_id, b"n" * 16, request.csr)
        for key in request.keys:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

            Ed25519PublicKey.from_public_bytes(key.public).verify(key.proof, message)
        public = x509.load_der_x509_csr(request.csr).public_key()
        issued = world.authority.issue_silo(public, SILO, 0, time.time(), 72 * 3600)  # type: ignore[arg-type]
        enrolled = {
            "silo": SILO,
            "agent": 0,
            "token_id": request.token_id,
            "csr_sha256": canonical.sha256(request.csr),
            "keys": [{"purpose": k.purpose, "public": k.public.hex()} for k in request.keys],
        }
        world.log.append("silo.enrolled", enrolled, Target(kind="silo", id=SILO))
        target = Target(kind="certificate", id=issued.serial)
        world.log.append("cert.issued", issued.detail(), target)
        size = len(world.log.entries)
        receipts = [codec.receipt_to_proto(world.log.receipt(i, size)) for i in (size - 2, size - 1)]
        return enrolment_pb2.EnrolReply(certificate_chain=issued.chain, receipts=receipts)


class Audit(_Answers):
    def GetCheckpoint(self, request: Any, context: Any) -> Any:
        return audit_pb2.GetCheckpointReply(checkpoint=self.world.log.note(len(self.world.log.entries)))

    def GetConsistency(self, request: Any, context: Any) -> Any:
        self.guard("GetConsistency", context)
        return audit_pb2.GetConsistencyReply(
            proof=self.world.log.consistency(request.old_size, request.new_size)
        )


class Federation(_Answers):
    def Session(self, messages: Any, context: Any) -> Iterator[Any]:
        self.guard("Session", context)
        next(messages)
        self.world.hellos += 1
        yield pb.ServerMessage(
            welcome=pb.Welcome(
                protocol=1, release="0.1.0", heartbeat_seconds=1, server_time=int(self.world.server_time())
            )
        )
        while context.is_active():
            while self.world.pushes:
                yield self.world.pushes.pop(0)
            time.sleep(0.02)

    def ListJobs(self, request: Any, context: Any) -> Any:
        self.guard("ListJobs", context)
        return pb.ListJobsReply(jobs=self.world.jobs)

    def FetchArchive(self, request: Any, context: Any) -> Iterator[Any]:
        yield pb.Chunk(data=self.world.archive)

    def Decide(self, request: Any, context: Any) -> Any:
        self.guard("Decide", context)
        envelope = dsse.parse_envelope(request.envelope)
        statement = statements.parse_decision(envelope.payload)
        if self.world.approver:
            dsse.verify(envelope, self.world.approver, statements.PAYLOAD_TYPE)
        decision = {"approve": "approved", "deny": "denied", "withdraw": "withdrawn"}[statement.decision]
        self.world.decided.append(decision)
        self.world.words.append(statement.revival)
        for job in self.world.jobs:
            if job.id == request.job:
                job.decision, job.revival = decision, bool(statement.revival)
        receipt = self.world.log.append(
            f"job.{decision}",
            {
                "silo": statement.silo,
                "terms_sha256": statement.terms_sha256,
                "revival": statement.revival if self.world.honest else True,
            },
            Target(kind="job", id=request.job),
            job=request.job,
            sigs=[signature(envelope)],
        )
        return pb.DecideReply(receipt=codec.receipt_to_proto(receipt))

    def NextTask(self, request: Any, context: Any) -> Any:
        self.guard("NextTask", context)
        if self.world.leases:
            return pb.NextTaskReply(lease=self.world.leases[0])
        return pb.NextTaskReply(wait=pb.Wait(seconds=0.1, reason="nothing to do"))

    def FetchModel(self, request: Any, context: Any) -> Iterator[Any]:
        self.guard("FetchModel", context)
        data = self.world.models[request.digest]
        view = pb.View(version=0, density=1.0, encoding="safetensors", digest=request.digest, bytes=len(data))
        yield pb.FetchModelReply(
            header=pb.ModelHeader(view=view, receipts=[codec.receipt_to_proto(self.world.published)])
        )
        yield pb.FetchModelReply(chunk=data[request.offset :])

    def ReleaseLease(self, request: Any, context: Any) -> Any:
        self.world.released.append(request)
        self.world.done(request.lease)
        detail = {"lease": request.lease, "silo": SILO, "reason": request.reason}
        if request.exception:
            detail["exception"] = request.exception
        if request.code_line:
            detail["code_line"] = request.code_line
        receipt = self.world.log.append(
            "lease.released", detail, Target(kind="lease", id=request.lease), job=self.world.jobs[0].id
        )
        return pb.ReleaseLeaseReply(receipt=codec.receipt_to_proto(receipt))

    def Renew(self, request: Any, context: Any) -> Any:
        self.guard("Renew", context)
        public = x509.load_der_x509_csr(request.csr).public_key()
        issued = self.world.authority.issue_silo(public, SILO, 0, time.time(), 72 * 3600)  # type: ignore[arg-type]
        detail = {**issued.detail(), "previous_cert_sha256": "0" * 64}
        receipt = self.world.log.append("cert.renewed", detail, Target(kind="certificate", id=issued.serial))
        return pb.RenewReply(certificate_chain=issued.chain, receipt=codec.receipt_to_proto(receipt))


class Updates(_Answers):
    def UploadStatus(self, request: Any, context: Any) -> Any:
        self.guard("UploadStatus", context)
        upload = self.world.uploads.setdefault(request.update, Upload())
        return update_pb2.UploadStatusReply(synced=len(upload.data), reply=upload.decided)

    def Submit(self, messages: Any, context: Any) -> Any:
        self.guard("Submit", context)
        header = next(messages).header
        upload = self.world.uploads.setdefault(header.update, Upload())
        upload.offsets.append(header.offset)
        del upload.data[header.offset :]
        for message in messages:
            upload.data += message.chunk
        envelope = dsse.parse_envelope(header.envelope)
        statement = statements.parse_update(envelope.payload)
        if canonical.sha256(bytes(upload.data)) != statement.delta_sha256:
            upload.data.clear()
            self.world.refuse["digest"] = Refused(Reason.DIGEST_MISMATCH, "other bytes than signed")
            self.guard("digest", context)
        detail = {
            "update": statement.update,
            "silo": SILO,
            "lease": statement.lease,
            "sequence": statement.sequence,
            "version": statement.base_version,
            "staleness": 0,
            "bytes": statement.bytes,
            "delta_sha256": statement.delta_sha256,
            "statement_sha256": canonical.sha256(envelope.payload),
            "norm": canonical.hexfloat(1.0),
        }
        target = Target(kind="update", id=statement.update)
        receipt = self.world.log.append(
            "update.received", detail, target, job=statement.job, sigs=[signature(envelope)]
        )
        upload.decided = update_pb2.SubmitReply(receipt=codec.receipt_to_proto(receipt))
        self.world.done(statement.lease)
        return upload.decided

    def SubmitEvaluation(self, request: Any, context: Any) -> Any:
        from anabranch.tlog.entry import seal

        envelope = dsse.parse_envelope(request.envelope)
        statement = statements.parse_evaluation(envelope.payload)
        receipt = self.world.log.append(
            "model.evaluated",
            {"version": statement.version, "silo": SILO, "split": statement.split},
            Target(kind="model", id=f"{statement.job}/{statement.version}"),
            job=statement.job,
            sealed=seal(
                {"metrics": dict(statement.metrics), "num_examples": statement.num_examples}, bytes(32)
            ),
            sigs=[signature(envelope)],
        )
        self.world.done(request.lease)
        return update_pb2.SubmitReply(receipt=codec.receipt_to_proto(receipt))
