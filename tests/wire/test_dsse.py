import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.wire import canonical, dsse, limits

# RFC 8032, section 7.1, test 1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
TYPE = "http://example.com/HelloWorld"


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.code


def test_pae_vector_of_the_specification():
    assert dsse.pae(TYPE, b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_pae_counts_bytes_not_characters():
    assert dsse.pae("ä", "ö€".encode()) == "DSSEv1 2 ä 5 ö€".encode()


def test_signature_is_over_the_pae_by_the_named_key():
    envelope = dsse.sign(TYPE, b"hello world", KEY)
    (signature,) = envelope.signatures
    assert signature.keyid == canonical.sha256(PUBLIC) == dsse.keyid(PUBLIC)
    KEY.public_key().verify(signature.sig, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")
    assert json.loads(envelope.encode()) == {
        "payload": "aGVsbG8gd29ybGQ=",
        "payloadType": TYPE,
        "signatures": [{"keyid": signature.keyid, "sig": base64.b64encode(signature.sig).decode()}],
    }


@given(st.binary(max_size=300), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_round_trip(payload, kind):
    envelope = dsse.sign(kind, payload, KEY)
    again = dsse.parse_envelope(envelope.encode())
    assert again == envelope
    assert dsse.verify(again, PUBLIC, kind) == payload


@settings(max_examples=300)
@given(st.data())
def test_any_changed_byte_is_refused(data):
    encoded = bytearray(dsse.sign(TYPE, b"hello world", KEY).encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused) as caught:
        dsse.verify(dsse.parse_envelope(bytes(encoded)), PUBLIC, TYPE)
    assert caught.value.code in (Reason.MALFORMED, Reason.BAD_SIGNATURE)


def test_another_key_type_or_payload_is_a_bad_signature():
    envelope = dsse.sign(TYPE, b"hello world", KEY)
    (signature,) = envelope.signatures
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw()
    renamed = dsse.Signature(dsse.keyid(public), signature.sig)
    for forged, key, kind in (
        (envelope, public, TYPE),
        (envelope, PUBLIC, "application/other"),
        (dsse.Envelope(TYPE, b"hello World", envelope.signatures), PUBLIC, TYPE),
        (dsse.Envelope(TYPE, b"hello world", (renamed,)), public, TYPE),
        (dsse.Envelope(TYPE, b"hello world", (dsse.Signature(signature.keyid, b"short"),)), PUBLIC, TYPE),
        (envelope, b"not a key", TYPE),
    ):
        assert refused(dsse.verify, forged, key, kind) is Reason.BAD_SIGNATURE


def test_one_of_several_signatures_is_enough():
    first = dsse.sign(TYPE, b"x", Ed25519PrivateKey.generate())
    both = dsse.Envelope(TYPE, b"x", first.signatures + dsse.sign(TYPE, b"x", KEY).signatures)
    assert dsse.verify(dsse.parse_envelope(both.encode()), PUBLIC, TYPE) == b"x"


def _envelope(**change):
    parts = json.loads(dsse.sign(TYPE, b"hello world", KEY).encode())
    parts.update(change)
    return canonical.encode({key: value for key, value in parts.items() if value is not None})


SIG = {"keyid": "k", "sig": "AAAA"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        _envelope(payload=None),
        _envelope(payload=1),
        _envelope(payload="aGVsbG8gd29ybGQ"),  # unpadded
        _envelope(payload="aGVsbG8gd29ybGR="),  # leftover bits
        _envelope(payload="aGVs bG8="),
        _envelope(payload="_-__"),  # URL alphabet
        _envelope(payload="ä"),
        _envelope(extra=1),
        _envelope(signatures=[]),
        _envelope(signatures=[SIG, SIG]),
        _envelope(signatures=[{**SIG, "keyid": str(i)} for i in range(limits.SIGNATURES + 1)]),
        _envelope(signatures=[{**SIG, "cert": "x"}]),
        _envelope(signatures=[{"sig": "AAAA"}]),
        _envelope(signatures=["AAAA"]),
        _envelope(signatures={}),
        dsse.sign(TYPE, b"hello world", KEY).encode() + b"\n",
        b"[" * 60_000,
    ],
)
def test_other_shapes_are_malformed(data):
    assert refused(dsse.parse_envelope, data) is Reason.MALFORMED


def test_size_is_judged_first():
    assert refused(dsse.parse_envelope, b"{" * (limits.ENVELOPE + 1)) is Reason.SIZE_LIMIT
    with pytest.raises(Misuse):
        dsse.sign(TYPE, bytes(limits.ENVELOPE), KEY).encode()


def test_an_envelope_of_many_lists_is_refused_before_it_is_read():
    lists = b"[" + b",".join([b"[]"] * 20_000) + b"]"
    with pytest.raises(Refused, match="more objects and lists") as caught:
        dsse.parse_envelope(lists)
    assert caught.value.code is Reason.MALFORMED
