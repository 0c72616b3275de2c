"""What an enrolment request claims, checked before any state is touched: proofs of possession, and nothing else.

The nonce a silo signs is a keyed hash of its token's id and the current five minutes, so that nothing has to be
remembered per attempt and nobody can push out another's nonce.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from anabranch.errors import Reason, Refused
from anabranch.wire import canonical, dsse
from anabranch.wire.identity import enrolment_proof_message
from server.ca.authority import read_request

NONCE_SECONDS = 300  # a nonce is good for this long and as long again
TOKEN_BYTES = 32
PURPOSES = frozenset({"update", "approver"})


@dataclass(frozen=True)
class SigningKey:
    """A key the silo made for `purpose`; `proof` is its own Ed25519 signature over `enrolment_proof_message`."""

    purpose: str
    public: bytes  # raw, 32 bytes
    proof: bytes

    @property
    def keyid(self) -> str:
        return dsse.keyid(self.public)


@dataclass(frozen=True)
class Claim:
    """A request whose keys are proven. Whether its token is good is decided in the transaction."""

    token_id: str
    token_hash: str
    request: str  # digest of the certificate request
    tls_key: EllipticCurvePublicKey
    keys: tuple[SigningKey, ...]


@dataclass(frozen=True)
class Nonces:
    """`secret` is of this process: a restart voids open attempts, which begin again."""

    secret: bytes = field(repr=False)

    def current(self, token_id: str, now: float) -> bytes:
        return self._nonce(token_id, int(now // NONCE_SECONDS))

    def recent(self, token_id: str, now: float) -> tuple[bytes, bytes]:
        period = int(now // NONCE_SECONDS)
        return self._nonce(token_id, period), self._nonce(token_id, period - 1)

    def _nonce(self, token_id: str, period: int) -> bytes:
        return hmac.digest(self.secret, f"{period}\n{token_id}".encode(), hashlib.sha256)


def read_claim(
    token_id: str, token: bytes, csr: bytes, keys: Sequence[SigningKey], nonces: Sequence[bytes]
) -> Claim:
    """Raises Refused: MALFORMED, BAD_SIGNATURE when a proof fits none of `nonces`, or as `read_request`."""
    tls_key = read_request(csr)
    if {key.purpose for key in keys} != PURPOSES or len(keys) != len(PURPOSES):
        raise Refused(
            Reason.MALFORMED, f"enrol with exactly one key for each of {', '.join(sorted(PURPOSES))}"
        )
    if len({key.public for key in keys}) != len(keys):
        raise Refused(Reason.MALFORMED, "each purpose needs a key of its own")
    messages = [enrolment_proof_message(token_id, nonce, csr) for nonce in nonces]
    for key in keys:
        if not any(_signed(key, message) for message in messages):
            raise Refused(
                Reason.BAD_SIGNATURE, f"the {key.purpose} key did not sign this attempt's nonce; begin again"
            )
    token_hash = hashlib.sha256(token).hexdigest()
    return Claim(token_id, token_hash, canonical.sha256(csr), tls_key, tuple(keys))


def _signed(key: SigningKey, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(key.proof, message)
    except (InvalidSignature, ValueError):
        return False
    return True
