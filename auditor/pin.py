"""The auditor's one anchor: the log's verifier key, obtained outside the export."""

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch.errors import Reason, Refused
from anabranch.tlog.note import NoteVerifier
from anabranch.wire.identity import spki_pin
from auditor.export import KEY_FILE, Export

CAUTION = (
    "the log's key was taken from the export itself: this proves that the export is consistent, not whose log it is; "
    "pass --vkey with the key a silo pinned at enrolment (log_vkey in its federation.json)"
)


@dataclass(frozen=True)
class Pin:
    vkey: str
    verifier: NoteVerifier
    own: bool  # taken from the export, for want of a better one

    @property
    def origin(self) -> str:
        """A log's key is named after its log."""
        return self.verifier.name


def pin(export: Export, given: str | None) -> Pin:
    """`given`: a vkey, a file with one, or a silo's federation.json; None takes the export's. Raises Refused."""
    text = read_vkey(export) if given is None else _given(given)
    return Pin(text, NoteVerifier.from_vkey(text), given is None)


def read_vkey(export: Export) -> str:
    """keys/log.vkey: one line. Raises Refused."""
    data = export.read("keys/log.vkey", KEY_FILE)
    if not data.isascii() or not data.endswith(b"\n") or data.count(b"\n") != 1:
        raise Refused(Reason.MALFORMED, "keys/log.vkey is not one line of text")
    return data.decode("ascii").removesuffix("\n")


def _given(given: str) -> str:
    try:
        path = Path(given)
        text = path.read_text("utf-8") if path.is_file() else given
        vkey = str(json.loads(text)["log_vkey"]) if text.lstrip().startswith("{") else text.strip()
        NoteVerifier.from_vkey(vkey)
        return vkey
    except Refused as error:
        what = "holds no vkey" if path.is_file() else "is no file here, and not a vkey"
        raise Refused(
            Reason.MALFORMED,
            f"--vkey {given[:80]} {what} (name+key ID+base64); a silo has the log's key in"
            " identity/federation.json of its agent's directory",
        ) from error
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"--vkey {given[:80]}: neither a vkey nor a file with one") from error


def authority_pins(export: Export) -> set[str]:
    """Pins of the certificates in keys/ca.pem, each proven by its own signature. Raises Refused.

    The whole file is accounted for: it is exactly these certificates in PEM, so no byte of it can change.
    """
    data = export.read("keys/ca.pem", KEY_FILE)
    try:
        certificates = x509.load_pem_x509_certificates(data)
        for certificate in certificates:
            certificate.verify_directly_issued_by(certificate)
        again = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        pins = {spki_pin(certificate) for certificate in certificates}
    except Exception as error:  # a parser fed by strangers: whatever it raises, the file is at fault
        raise Refused(Reason.MALFORMED, "keys/ca.pem holds no self-signed certificate authority") from error
    if again != data or len(pins) != len(certificates):
        raise Refused(Reason.MALFORMED, "keys/ca.pem holds more than its certificates, each once")
    return pins
