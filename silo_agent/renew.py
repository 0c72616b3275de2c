"""Renewal of the TLS certificate: a new key and a new certificate at a third of the old one's life, without a pause.

The server keeps the old certificate valid until the new one is first used, or for ten minutes. So whatever is
interrupted here is done again at the next start, while the old pair still opens the door.
"""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch import durable
from anabranch.errors import Conflict, Reason, Refused, Unavailable
from anabranch.wire import canonical
from anabranch.wire import identity as wire
from silo_agent import identity, receipts
from silo_agent.identity import TlsIdentity
from silo_agent.messages import Certified
from silo_agent.receipts import LogView, Untrusted

RETRY_SECONDS = 60.0
LONGEST_WAIT = 3600.0  # seconds; a clock may be set meanwhile

logger = structlog.get_logger("renewal")


class Client(Protocol):
    """The calls of a renewal."""

    def renew(self, csr: bytes, seen: int) -> Certified: ...
    def switch(self, key: bytes, certificate: bytes) -> None: ...


def due(who: TlsIdentity, spread: float) -> float:
    """When to renew, in unix seconds: at a third of the certificate's life, moved by up to 10 % of it.

    `spread` in [-1, 1] keeps silos that enrolled together from renewing together.
    """
    start, end = who.leaf.not_valid_before_utc.timestamp(), who.leaf.not_valid_after_utc.timestamp()
    return start + (end - start) / 3 * (1 + 0.1 * spread)


def renew(directory: Path, client: Client, log: LogView, now: float) -> TlsIdentity:
    """Replace the TLS pair on disk and on the wire. Raises Refused, Unavailable; the old pair then still stands."""
    mine = identity.load_tls(directory)
    key = wire.new_tls_key()
    # Killed after this write: the key is never used, and the next attempt makes another.
    identity.born(directory / identity.NEXT_KEY, wire.private_pem(key))
    certified = client.renew(wire.csr(key), log.seen())
    leaf, *intermediates = wire.parse_chain(certified.chain)
    found = wire.verify_leaf(leaf, wire.parse_chain(mine.ca), intermediates, now, mine.who.role)
    if found != mine.who or leaf.public_key() != key.public_key():
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the renewed certificate is {found.uri}'s, not {mine.who.uri}'s with the new key",
        )
    fingerprint = canonical.sha256(leaf.public_bytes(Encoding.DER))
    receipts.require(
        log.accept(certified.receipt), "cert.renewed", identity=found.uri, cert_sha256=fingerprint
    )
    # Killed before this write: the new certificate is lost; the old one is still valid and renewed again at the start.
    durable.write(directory / identity.NEXT_CHAIN, certified.chain)
    identity.install_next(directory)
    renewed = identity.load_tls(directory)
    client.switch(renewed.key, renewed.chain)
    return renewed


def keep_renewed(
    directory: Path, client: Client, log: LogView, stop: threading.Event, renewed: Callable[[], None]
) -> None:
    """Renew whenever it is due, until `stop`. Failures are retried every minute. Raises Untrusted, Corrupt."""
    spread = random.uniform(-1, 1)  # noqa: S311 - spreads load, guards nothing
    interrupted = (directory / identity.NEXT_KEY).exists()  # the server may hold a renewal nobody received
    pause = 0.0
    while not stop.wait(pause):
        left = due(identity.load_tls(directory), spread) - time.time()
        if left > 0 and not interrupted:
            pause = min(left, LONGEST_WAIT)
            continue
        try:
            who = renew(directory, client, log, time.time())
        except Untrusted:
            raise
        except (Refused, Unavailable, Conflict) as error:
            logger.warning("the certificate could not be renewed; trying again in a minute", error=str(error))
            pause = RETRY_SECONDS
            continue
        interrupted, pause = False, 0.0
        logger.info("certificate renewed", valid_until=f"{who.leaf.not_valid_after_utc:%F %T} UTC")
        renewed()
