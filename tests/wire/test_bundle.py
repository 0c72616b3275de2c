import json

import pytest

from anabranch.errors import Reason, Refused
from anabranch.wire import bundle, canonical, identity, limits
from tests.wire import pki

TOKEN = "5e" * 32


@pytest.fixture(scope="module")
def joined(ca):
    return bundle.JoinBundle(
        server="fl.example:7443",
        enrolment="[::1]:7444",
        ca_pem=ca.pem.decode(),
        ca_pins=(identity.spki_pin(ca.root),),
        federation=pki.FEDERATION,
        log_origin="demo.example/log",
        log_vkey="demo.example/log+0a1b2c3d+AbCd",
        silo="north",
        token_id="t-1",
        token=TOKEN,
        expires=canonical.utc(1_800_000_000),
    )


def refused(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value


def test_round_trip(joined):
    assert bundle.parse_bundle(joined.encode()) == joined
    info = joined.federation_info()
    assert bundle.parse_federation(info.encode()) == info
    assert info.silo == "north"
    admin = info.model_copy(update={"silo": None})
    assert bundle.parse_federation(admin.encode()) == admin


def test_white_space_of_a_copied_file_does_not_matter(joined):
    assert bundle.parse_bundle(json.dumps(json.loads(joined.encode()), indent=2).encode() + b"\n\n") == joined


def test_the_token_is_a_secret(joined):
    assert TOKEN not in repr(joined)
    assert TOKEN.encode() not in joined.federation_info().encode()
    for broken in (joined.encode()[:-1], joined.encode().replace(b'"silo"', b'"sila"')):
        fault = refused(bundle.parse_bundle, broken)
        assert TOKEN not in str(fault)
        assert fault.__suppress_context__


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server", "fl.example"),
        ("server", "fl.example:0"),
        ("server", "https://fl.example:7443"),
        ("enrolment", ":7444"),
        ("ca_pins", []),
        ("ca_pins", ["sha1:00"]),
        ("federation", "Demo"),
        ("silo", "North!"),
        ("silo", None),
        ("token", TOKEN[2:]),
        ("token", None),
        ("expires", "tomorrow"),
        ("log_vkey", "a b"),
        ("policy", "x"),
    ],
)
def test_the_schema_is_closed(joined, key, value):
    tree = {**json.loads(joined.encode()), key: value}
    data = json.dumps({k: v for k, v in tree.items() if v is not None}).encode()
    assert refused(bundle.parse_bundle, data).code is Reason.MALFORMED


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 20_000])
def test_other_documents_are_malformed(data):
    assert refused(bundle.parse_bundle, data).code is Reason.MALFORMED
    assert refused(bundle.parse_federation, data).code is Reason.MALFORMED


def test_a_key_given_twice_is_refused(joined):
    data = joined.encode()[:-1] + b',"server":"evil.example:1"}'
    assert refused(bundle.parse_bundle, data).code is Reason.MALFORMED


def test_size_is_judged_first():
    assert refused(bundle.parse_bundle, b" " * (limits.BUNDLE + 1)).code is Reason.SIZE_LIMIT


def test_a_replaced_ca_does_not_fit_the_pins(joined):
    other = pki.authority()
    for pem in (other.pem, joined.ca_pem.encode() + other.pem, b"", b"garbage"):
        data = joined.model_copy(update={"ca_pem": pem.decode()}).encode()
        assert refused(bundle.parse_bundle, data).code is Reason.BAD_CERTIFICATE


def test_several_pins_allow_a_rotation(joined):
    other = pki.authority()
    both = {
        "ca_pem": joined.ca_pem + other.pem.decode(),
        "ca_pins": (*joined.ca_pins, identity.spki_pin(other.root)),
    }
    rotated = joined.model_copy(update=both)
    assert bundle.parse_bundle(rotated.encode()) == rotated
