"""Sending what stands in the outbox, until the server has proven what became of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from anabranch.errors import Reason, Refused, Unavailable
from anabranch.wire import canonical, dsse, limits
from anabranch.wire.packed import is_packed
from silo_agent import receipts
from silo_agent.client import Client
from silo_agent.config import Home
from silo_agent.messages import Decided
from silo_agent.outbox import Outbox, Pending
from silo_agent.receipts import LogView

# About this identity or this moment, not about the update: it stays in the outbox.
NOT_ABOUT_THE_UPDATE = frozenset({Reason.REVOKED_IDENTITY, Reason.BAD_CERTIFICATE, Reason.WRONG_ROLE})

logger = structlog.get_logger("submit")


@dataclass(frozen=True)
class Sender:
    home: Home
    silo: str
    client: Client
    log: LogView
    outbox: Outbox

    def deliver(self, pending: Pending, resume: bool = True) -> str:
        """Send one update and forget it once its receipt is verified. The reason it was refused for, or "".

        `resume` asks the server first how much it has; False: nothing of it was ever sent.

        Killed anywhere inside: it is still in the outbox, is offered again under the same id, and gets the decision it
        got first. Raises Untrusted, Unavailable, Conflict, and Refused for what concerns this silo's identity.
        """
        statement = pending.statement
        try:
            decided = self._resumed(pending) if resume else self._sent(pending, 0)
        except Refused as refusal:
            if refusal.code in NOT_ABOUT_THE_UPDATE:
                raise
            if refusal.code is Reason.QUOTA:
                raise Unavailable(f"the server asks to send less at once: {refusal}") from refusal
            kept = self.outbox.set_aside(pending, refusal, self.home.path / "refused")
            logger.error(
                "the server would not take an update", reason=refusal.code, error=str(refusal), kept=str(kept)
            )
            return refusal.code
        self._prove(pending, decided)
        folder = self.home.job(statement.job)
        receipts.journal(folder / "receipts.jsonl", decided.receipt)
        if not decided.reason:
            self.outbox.settle(pending, folder)
        self.outbox.forget(pending)
        if decided.reason == Reason.JOB_ENDED:
            logger.info("an update came after the job had ended", update=statement.update)
        elif decided.reason:
            logger.error("the server refused an update", update=statement.update, reason=decided.reason)
        else:
            logger.info("update received", update=statement.update, base=statement.base_version)
        return decided.reason

    def _prove(self, pending: Pending, decided: Decided) -> None:
        """The log says about this very update what the server said."""
        statement = pending.statement
        entry = self.log.accept(decided.receipt)
        if decided.reason:
            receipts.require(
                entry, "update.refused", update=statement.update, silo=self.silo, code=decided.reason
            )
            return
        receipts.require(
            entry,
            "update.received",
            job=statement.job,
            update=statement.update,
            silo=self.silo,
            lease=statement.lease,
            delta_sha256=statement.delta_sha256,
            statement_sha256=canonical.sha256(dsse.parse_envelope(pending.envelope).payload),
        )

    def _sent(self, pending: Pending, offset: int) -> Decided:
        update, chunks = pending.statement.update, _chunks(pending.delta, offset)
        seen, packed = self.log.seen(), is_packed(pending.delta)
        return self.client.submit(update, pending.envelope, offset, chunks, seen, packed)

    def _resumed(self, pending: Pending) -> Decided:
        statement = pending.statement
        synced, decided = self.client.upload_status(statement.update, self.log.seen())
        if decided is not None:
            return decided
        offset = min(synced, statement.bytes)
        try:
            return self._sent(pending, offset)
        except Refused as error:
            if error.code is not Reason.DIGEST_MISMATCH or offset == 0:
                raise
        logger.warning(
            "the server's part of the update is damaged; sending it from the start", update=statement.update
        )
        return self._sent(pending, 0)


def _chunks(delta: Path, offset: int) -> Iterator[bytes]:
    with open(delta, "rb") as file:
        file.seek(offset)
        while chunk := file.read(limits.CHUNK):
            yield chunk
