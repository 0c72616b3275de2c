"""Signed notes: the specification's example, and that only one spelling of a note is read."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.note import MAX_NOTE, MAX_SIGNATURES, NoteSigner, NoteVerifier, open_note

SPEC_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)


def refused(reason, note, verifier):
    with pytest.raises(Refused) as caught:
        open_note(note, verifier)
    assert caught.value.code is reason


def test_the_example_of_the_specification():
    assert open_note(SPEC_NOTE, NoteVerifier.from_vkey(SPEC_VKEY)) == "This is an example message.\n"


def test_tessera_keys_agree_on_both_halves():
    """skey `PRIVATE+KEY+<name>+<id>+base64(1 ‖ seed)` of Tessera's test log."""
    seed = base64.b64decode("AeymY/SZAX0jZcJ8enZ5FY1Dz+wTML2yWSkK+9DSF3eg")[1:]
    signer = NoteSigner("example.com/log/testdata", Ed25519PrivateKey.from_private_bytes(seed))
    assert signer.vkey == "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\n"), max_size=200))
def test_round_trip(text):
    signer = NoteSigner("log.example", Ed25519PrivateKey.from_private_bytes(b"\x05" * 32))
    verifier = NoteVerifier.from_vkey(signer.vkey)
    note = signer.sign(text + "\n")
    assert open_note(note, verifier) == text + "\n"


@given(st.data())
def test_no_changed_character_is_overlooked(data):
    verifier = NoteVerifier.from_vkey(SPEC_VKEY)
    at = data.draw(st.integers(0, len(SPEC_NOTE) - 1))
    other = data.draw(st.sampled_from("ab+/= \n\t—é").filter(lambda c: c != SPEC_NOTE[at]))
    for changed in (SPEC_NOTE[:at] + other + SPEC_NOTE[at + 1 :], SPEC_NOTE[:at] + SPEC_NOTE[at + 1 :]):
        with pytest.raises(Refused):
            open_note(changed, verifier)


def test_unknown_keys_are_ignored_and_known_ones_must_verify(signer, verifier):
    note = signer.sign("text\n")
    strangers = [
        NoteSigner(f"witness-{i}.example", Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32))
        for i in range(20)
    ]
    lines = "".join(stranger.sign("text\n").split("\n\n")[1] for stranger in strangers)
    assert open_note(note + lines, verifier) == "text\n"
    assert open_note(note.replace("\n\n", "\n\n" + lines), verifier) == "text\n"
    refused(Reason.BAD_SIGNATURE, "text\n\n" + lines, verifier)
    forged = signer.sign("other\n").split("\n\n")[1]
    refused(Reason.BAD_SIGNATURE, note + forged, verifier)
    refused(Reason.BAD_SIGNATURE, "text\n\n" + forged, verifier)


def test_a_known_key_id_under_another_name_is_unknown(signer, verifier):
    note = signer.sign("text\n").replace("— audit", "— other")
    refused(Reason.BAD_SIGNATURE, note, verifier)


def test_a_signature_of_the_wrong_length_by_a_known_key_is_bad(signer, verifier):
    line = base64.b64encode(verifier.key_id + b"short").decode()
    refused(Reason.BAD_SIGNATURE, f"text\n\n— {signer.name} {line}\n", verifier)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.removesuffix("\n"),
        lambda note: note + "\n",
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note.replace("—", "-"),
        lambda note: note.replace("— ", "—  "),
        lambda note: note.replace("\n", "\r\n"),
        lambda note: note.replace("text", "te\x00xt"),
        lambda note: note.replace("text", "te\ud800xt"),
        lambda note: note + "— someone\n",
        lambda note: note + "— some+one AAAAAAA=\n",
        lambda note: note + "— someone AAAA\n",  # too short to hold a key ID and a signature
        lambda note: note + "— someone AAAAAAB=\n",  # stray bits
        lambda note: note + "— someone AAAAAAA\n",  # no padding
        lambda note: note + "— someone AAAA AAA=\n",
        lambda note: "",
        lambda note: "\n\n",
        lambda note: "text\n",
        lambda note: "text\n\n",
    ],
)
def test_only_one_spelling_is_read(signer, verifier, spoil):
    refused(Reason.MALFORMED, spoil(signer.sign("text\n")), verifier)


def test_bounds(signer, verifier):
    refused(Reason.SIZE_LIMIT, signer.sign("x" * MAX_NOTE + "\n"), verifier)
    line = "— someone AAAAAAA=\n"
    assert open_note(signer.sign("x\n") + line * (MAX_SIGNATURES - 1), verifier) == "x\n"
    refused(Reason.SIZE_LIMIT, signer.sign("x\n") + line * MAX_SIGNATURES, verifier)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        SPEC_VKEY.replace("530d903a", "530d903b"),
        SPEC_VKEY.replace("530d903a", "530D903A"),
        SPEC_VKEY.replace("example", "exemple"),
        SPEC_VKEY + "=",
        SPEC_VKEY[:-1],
        SPEC_VKEY + "\n",
        "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",  # a cosignature key, type 4
    ],
)
def test_only_one_spelling_of_a_vkey_is_read(vkey):
    with pytest.raises(Refused) as caught:
        NoteVerifier.from_vkey(vkey)
    assert caught.value.code is Reason.MALFORMED


def test_a_vkey_may_contain_a_plus_in_its_base64():
    for seed in range(256):
        signer = NoteSigner("log.example", Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))
        if signer.vkey.count("+") > 2:
            assert NoteVerifier.from_vkey(signer.vkey).name == "log.example"
            return
    raise AssertionError("no such key among 256 seeds")


def test_what_cannot_be_signed():
    key = Ed25519PrivateKey.generate()
    for name in ("", "a b", "a+b", "a\nb", "a\u00a0b"):
        with pytest.raises(Misuse):
            NoteSigner(name, key)
    for text in ("", "no newline", "tab\t\n", "\ud800\n"):
        with pytest.raises(Misuse):
            NoteSigner("log.example", key).sign(text)
