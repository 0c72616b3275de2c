"""Every call the agent makes to its server, and nothing else: the only module of the agent that knows gRPC messages.

Calls are synchronous. A failed call raises what the server meant (`anabranch.wire.status`). A unary call has a deadline;
a bulk stream has a longer one and is resumed by its caller, so a stalled peer costs a resume, never a hang.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import grpc

from anabranch.errors import Corrupt, Misuse, Reason, Refused, Unavailable
from anabranch.tlog.receipt import Receipt
from anabranch.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    update_pb2,
    update_pb2_grpc,
)
from anabranch.wire import codec, limits, status, tls
from anabranch.wire.squeeze import squeeze, unsqueeze
from anabranch.wire.values import Bytes
from silo_agent import messages
from silo_agent.messages import (
    Certified,
    Decided,
    Heartbeat,
    Hello,
    Lease,
    OfferedJob,
    ServerMessage,
    View,
    Wait,
)

UNARY_SECONDS = 60.0
BULK_SECONDS = 600.0  # of one attempt; transfers resume where they stopped


class Client:
    """Calls over one mTLS channel, which `switch` replaces when the certificate is renewed. Thread-safe.

    `seen`: how many entries of the log this silo has verified (`LogView.seen`); the receipts of the answer continue them.
    """

    def __init__(self, address: str, ca: bytes, key: bytes, certificate: bytes, proxy: str | None) -> None:
        self._address, self._ca, self._proxy = address, ca, proxy
        self._switching = threading.Lock()
        self._draining: grpc.Channel | None = None
        self._session: Any = None
        self._generation = 0
        self._open(key, certificate)

    def _open(self, key: bytes, certificate: bytes) -> None:
        self._channel = tls.channel(self._address, self._ca, key, certificate, self._proxy)
        self._federation: Any = federation_pb2_grpc.FederationStub(self._channel)  # type: ignore[no-untyped-call]
        self._updates: Any = update_pb2_grpc.UpdatesStub(self._channel)  # type: ignore[no-untyped-call]
        self._submit = self._channel.stream_unary(
            "/anabranch.v1.Updates/Submit",
            request_serializer=codec.serialise,
            response_deserializer=update_pb2.SubmitReply.FromString,
        )
        self._fetch_model = self._channel.unary_stream(
            "/anabranch.v1.Federation/FetchModel",
            request_serializer=codec.serialise,
            response_deserializer=codec.chunk_or(federation_pb2.FetchModelReply.FromString),
        )
        self._audit: Any = audit_pb2_grpc.AuditStub(self._channel)  # type: ignore[no-untyped-call]

    def switch(self, key: bytes, certificate: bytes) -> None:
        """New calls use the renewed certificate; running ones end on the old channel, closed at the next switch."""
        with self._switching:
            if self._draining is not None:
                self._draining.close()
            self._draining = self._channel
            self._open(key, certificate)
            self._generation += 1

    def close(self) -> None:
        """Cancels whatever is still running."""
        with self._switching:
            if self._draining is not None:
                self._draining.close()
            self._channel.close()

    # --- control -----------------------------------------------------------------------------------------------------

    def jobs(self, seen: int) -> list[OfferedJob]:
        with self._answering():
            reply = self._federation.ListJobs(
                federation_pb2.ListJobsRequest(seen=seen), timeout=UNARY_SECONDS
            )
        return [messages.offered_job(job) for job in codec.capped(reply.jobs, limits.JOBS, "jobs")]

    def decide(self, job: str, envelope: bytes, seen: int) -> Receipt:
        with self._answering():
            request = federation_pb2.DecideRequest(job=job, envelope=envelope, seen=seen)
            return codec.receipt_from_proto(self._federation.Decide(request, timeout=UNARY_SECONDS).receipt)

    def next_task(self, job: str, seen: int, cycles_left: int | None = None) -> Lease | Wait:
        """`cycles_left`: of training, that the privacy budget holds; None: not limited, or not known yet."""
        with self._answering():
            request = federation_pb2.NextTaskRequest(jobs=[job], seen=seen, cycles_left=cycles_left)
            reply = self._federation.NextTask(request, timeout=UNARY_SECONDS)
        return messages.task(reply)

    def release(self, lease: str, reason: Reason, exception: str, code_line: str, seen: int) -> Receipt:
        with self._answering():
            request = federation_pb2.ReleaseLeaseRequest(
                lease=lease, reason=reason.value, exception=exception, code_line=code_line, seen=seen
            )
            return codec.receipt_from_proto(
                self._federation.ReleaseLease(request, timeout=UNARY_SECONDS).receipt
            )

    def renew(self, csr: bytes, seen: int) -> Certified:
        with self._answering():
            request = federation_pb2.RenewRequest(csr=csr, seen=seen)
            reply = self._federation.Renew(request, timeout=UNARY_SECONDS)
        return Certified(reply.certificate_chain, codec.receipt_from_proto(reply.receipt))

    def consistency(self, old: int, new: int) -> Sequence[bytes]:
        with self._answering():
            request = audit_pb2.GetConsistencyRequest(old_size=old, new_size=new)
            reply = self._audit.GetConsistency(request, timeout=UNARY_SECONDS)
        return tuple(codec.capped(reply.proof, 2 * limits.PROOF, "hashes of a proof"))

    def session(self, outgoing: Iterable[Hello | Heartbeat]) -> Iterator[ServerMessage]:
        """The one long-lived stream. Ends when the server ends it; raises when it breaks or `hang_up` is called."""
        with self._answering():
            self._session = self._federation.Session(messages.to_proto(m) for m in outgoing)
            for message in self._session:
                heard = messages.from_proto(message)
                if heard is not None:
                    yield heard

    def hang_up(self) -> None:
        """Break off the session stream, if one is open."""
        if self._session is not None:
            self._session.cancel()

    # --- bulk --------------------------------------------------------------------------------------------------------

    def archive(self, job: str) -> Iterator[bytes]:
        with self._answering():
            request = federation_pb2.FetchArchiveRequest(job=job)
            for chunk in self._federation.FetchArchive(request, timeout=BULK_SECONDS):
                yield chunk.data

    def model(
        self, job: str, digest: str, offset: int, seen: int
    ) -> Iterator[tuple[View, tuple[Receipt, ...]] | Bytes]:
        """The header (what it is, and the proofs), then the bytes from `offset` on."""
        with self._answering():
            request = federation_pb2.FetchModelRequest(job=job, digest=digest, offset=offset, seen=seen)
            for message in self._fetch_model(request, timeout=BULK_SECONDS):
                if isinstance(message, memoryview):
                    yield message
                elif message.WhichOneof("body") == "header":
                    proofs = codec.capped(message.header.receipts, limits.RECEIPTS, "receipts")
                    yield messages.viewed(message.header.view), tuple(map(codec.receipt_from_proto, proofs))
                elif message.WhichOneof("body") == "zstd":
                    yield unsqueeze(message.zstd)
                else:
                    yield message.chunk

    def upload_status(self, update: str, seen: int) -> tuple[int, Decided | None]:
        """Bytes the server has on stable storage, and its decision if it has made one."""
        with self._answering():
            request = update_pb2.UploadStatusRequest(update=update, seen=seen)
            reply = self._updates.UploadStatus(request, timeout=UNARY_SECONDS)
        return reply.synced, messages.decided(reply.reply) if reply.HasField("reply") else None

    def submit(
        self,
        update: str,
        envelope: bytes,
        offset: int,
        chunks: Iterable[bytes],
        seen: int,
        packed: bool = False,
    ) -> Decided:
        """Send the update's bytes from `offset` on; `chunks` are at most limits.CHUNK long. Those of packed files are
        squeezed.
        """
        header = update_pb2.SubmitHeader(update=update, envelope=envelope, offset=offset, seen=seen)
        messages_of = _squeezed if packed else codec.chunk_message
        requests = chain([update_pb2.SubmitRequest(header=header)], map(messages_of, chunks))
        with self._answering():
            return messages.decided(self._submit(requests, timeout=BULK_SECONDS))

    def submit_evaluation(self, lease: str, envelope: bytes, seen: int) -> Decided:
        with self._answering():
            request = update_pb2.SubmitEvaluationRequest(lease=lease, envelope=envelope, seen=seen)
            return messages.decided(self._updates.SubmitEvaluation(request, timeout=UNARY_SECONDS))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        generation = self._generation
        try:
            with answering():
                yield
        except Refused as error:
            if error.code is Reason.BAD_CERTIFICATE and generation != self._generation:
                raise Unavailable("the certificate was renewed during this call; it is made again") from error
            raise


def _squeezed(chunk: bytes) -> update_pb2.SubmitRequest:
    return update_pb2.SubmitRequest(zstd=squeeze(chunk))


class Enroller:
    """The two calls of enrolment, over TLS that authenticates the server only."""

    def __init__(self, address: str, ca: bytes, proxy: str | None) -> None:
        self._channel = tls.channel(address, ca, None, None, proxy)
        self._stub: Any = enrolment_pb2_grpc.EnrolmentStub(self._channel)  # type: ignore[no-untyped-call]

    def begin(self, token_id: str) -> bytes:
        """A fresh nonce for the proofs of possession."""
        with answering():
            nonce: bytes = self._stub.Begin(
                enrolment_pb2.BeginRequest(token_id=token_id), timeout=UNARY_SECONDS
            ).nonce
        return nonce

    def enrol(
        self, token_id: str, token: bytes, csr: bytes, keys: Iterable[tuple[str, bytes, bytes]]
    ) -> tuple[bytes, list[Receipt]]:
        """Spend the token. `keys`: purpose, raw public key, proof. The certificate chain (PEM), and what was logged."""
        request = enrolment_pb2.EnrolRequest(
            token_id=token_id,
            token=token,
            csr=csr,
            keys=[
                enrolment_pb2.Key(purpose=name, public=public, proof=proof) for name, public, proof in keys
            ],
        )
        with answering():
            reply = self._stub.Enrol(request, timeout=UNARY_SECONDS)
        receipts = codec.capped(reply.receipts, limits.RECEIPTS, "receipts")
        return reply.certificate_chain, [codec.receipt_from_proto(receipt) for receipt in receipts]

    def close(self) -> None:
        self._channel.close()


@contextmanager
def answering() -> Iterator[None]:
    """Turn a failed call into what the server meant."""
    try:
        yield
    except grpc.FutureCancelledError as error:
        raise Unavailable("the call was cancelled") from error
    except grpc.RpcError as error:
        meant = status.from_rpc_error(error)
        if isinstance(meant, Corrupt | Misuse):
            raise Unavailable(f"the server cannot answer: {meant}") from error  # theirs, not ours
        raise meant from error
    except ValueError as error:
        if "closed channel" not in str(error):
            raise
        raise Unavailable(f"the connection was closed: {error}") from error
