"""C2SP signed notes with Ed25519 keys: text that carries its signatures.

A note is text, a blank line, and lines `— <name> base64(keyID ‖ signature)`. A verifier knows one key by name
and key ID; lines of other keys (witnesses, a rotated key) are not looked at, but a bad line of its own key
spoils the note. Parsing is strict: one spelling per note, so a note can be compared and stored by its bytes.
"""

import base64
import binascii
import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from anabranch.errors import Misuse, Reason, Refused

MAX_NOTE = 64 * 1024  # characters
MAX_SIGNATURES = 100  # the specification asks for at least 16

_ED25519 = b"\x01"
_DASH = "\u2014 "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteSigner:
    """A named Ed25519 key that signs notes."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        """Raises Misuse on a name that no note can carry."""
        if not is_name(name):
            raise Misuse(f"{name!r} cannot name a key: empty, or with a space, a control character or a +")
        self.name = name
        self._key = key
        public = key.public_key().public_bytes_raw()
        self._key_id = key_id(name, public)
        self.vkey = f"{name}+{self._key_id.hex()}+{base64.b64encode(_ED25519 + public).decode()}"

    def sign(self, text: str) -> str:
        """The note: `text` (ends in a newline, no other control character) with a line of this key."""
        if not text.endswith("\n") or not _is_printable(text):
            raise Misuse("the text of a note ends in a newline and has no other control characters")
        signature = self._key.sign(text.encode())
        return f"{text}\n{_DASH}{self.name} {base64.b64encode(self._key_id + signature).decode()}\n"


class NoteVerifier:
    """The public half, pinned by its vkey."""

    def __init__(self, name: str, public: bytes) -> None:
        """`public`: raw Ed25519 key, 32 bytes. Raises Refused(MALFORMED)."""
        if not is_name(name) or len(public) != 32:
            raise Refused(
                Reason.MALFORMED, f"{name[:200]!r} with {len(public)} bytes is not a named Ed25519 key"
            )
        self.name = name
        self.key_id = key_id(name, public)
        self._public = Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def from_vkey(cls, vkey: str) -> "NoteVerifier":
        """From `name+hex(keyID)+base64(0x01 ‖ public key)`. Raises Refused(MALFORMED) on any other spelling
        or type.
        """
        parts = vkey.split("+", 2)  # base64 may contain more of them
        if len(parts) == 3:
            key = decode_base64(parts[2], "vkey")
            if len(key) == 33 and key[:1] == _ED25519:
                verifier = cls(parts[0], key[1:])
                if verifier.key_id.hex() == parts[1]:
                    return verifier
        raise Refused(Reason.MALFORMED, f"{vkey[:200]!r} is not a vkey of Ed25519: name+key ID+base64")

    def verify(self, text: str, signature: bytes) -> bool:
        """Whether `signature` (64 bytes, without key ID) is this key's over `text`."""
        try:
            self._public.verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


def open_note(note: str, verifier: NoteVerifier) -> str:
    """The text of a note signed by `verifier`'s key; signatures of unknown keys are ignored.

    Raises Refused: MALFORMED or SIZE_LIMIT when it is no note, BAD_SIGNATURE when the key has not signed it
    or one of its lines does not verify.
    """
    if len(note) > MAX_NOTE:
        raise Refused(Reason.SIZE_LIMIT, f"note of {len(note)} characters exceeds {MAX_NOTE}")
    if not _is_printable(note):
        raise Refused(Reason.MALFORMED, "note contains control characters or is not Unicode text")
    text, blank, block = note.rpartition("\n\n")
    lines = block.split("\n")
    if not blank or lines.pop() != "" or not lines:
        raise Refused(Reason.MALFORMED, "not a signed note: text, blank line, signature lines")
    if len(lines) > MAX_SIGNATURES:
        raise Refused(Reason.SIZE_LIMIT, f"note with {len(lines)} signatures exceeds {MAX_SIGNATURES}")
    text += "\n"
    signatures = [sig for name, known, sig in map(_signature_line, lines) if _is_ours(name, known, verifier)]
    if not signatures:
        raise Refused(Reason.BAD_SIGNATURE, f"note is not signed by {verifier.name}+{verifier.key_id.hex()}")
    if not all(verifier.verify(text, signature) for signature in signatures):
        raise Refused(Reason.BAD_SIGNATURE, f"signature of {verifier.name} on the note does not verify")
    return text


def key_id(name: str, public: bytes) -> bytes:
    """SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def is_name(name: str) -> bool:
    """Whether a note can carry this key name (and a checkpoint this origin): not empty, no white space, no
    plus.
    """
    return name.split() == [name] and _is_printable(name) and "+" not in name


def decode_base64(text: str, what: str) -> bytes:
    """Standard base64 in its one canonical spelling. Raises Refused(MALFORMED) naming `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.MALFORMED, f"{what}: not base64") from error
    if base64.b64encode(data).decode() != text:
        raise Refused(Reason.MALFORMED, f"{what}: base64 with stray bits or padding")
    return data


def _signature_line(line: str) -> tuple[str, bytes, bytes]:
    """(name, key ID, signature). A signature may have any length here: other keys may be of other types."""
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not is_name(name):
        raise Refused(Reason.MALFORMED, f"not a signature line of a note: {line[:80]!r}")
    data = decode_base64(encoded, "signature line of a note")
    if len(data) <= 4:
        raise Refused(Reason.MALFORMED, f"signature line without a signature: {line[:80]!r}")
    return name, data[:4], data[4:]


def _is_ours(name: str, known: bytes, verifier: NoteVerifier) -> bool:
    return name == verifier.name and known == verifier.key_id


def _is_printable(text: str) -> bool:
    """No control character but newline, and encodable: a lone surrogate is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return _CONTROL.search(text) is None
