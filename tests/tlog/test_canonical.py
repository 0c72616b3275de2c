"""Canonical JSON, hexadecimal floats and times: one spelling per value, and the exact value back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.wire import canonical

INTEGERS = st.integers(-canonical.MAX_INT, canonical.MAX_INT)
TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


def refused(data):
    with pytest.raises(Refused) as caught:
        canonical.decode(data)
    assert caught.value.code is Reason.MALFORMED


@given(VALUES)
def test_round_trip(value):
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert json.loads(data) == value
    assert canonical.encode(canonical.decode(data)) == data


@given(st.dictionaries(TEXT, INTEGERS, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical.encode(dict(items)) == canonical.encode(value)


@given(VALUES, st.data())
def test_white_space_is_refused(value, data):
    encoded = canonical.encode(value)
    at = data.draw(st.integers(0, len(encoded)))
    space = data.draw(st.sampled_from([b" ", b"\n", b"\t", b"\r"]))
    changed = encoded[:at] + space + encoded[at:]
    if json.loads(encoded, strict=False) == loaded_or_none(changed):
        refused(changed)


def loaded_or_none(data):
    """What a lenient reader makes of it; a value of its own when even that reader gives up."""
    try:
        return json.loads(data, strict=False)
    except ValueError:
        return object()


@given(st.binary(max_size=60))
def test_what_is_read_is_what_is_written(data):
    try:
        value = canonical.decode(data)
    except Refused:
        return
    assert canonical.encode(value) == data


def test_keys_sort_as_rfc8785_says():
    """The example of RFC 8785 §3.2.3: by UTF-16 code units."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(canonical.decode(canonical.encode(dict.fromkeys(keys, 0)))) == order


def test_strings_are_escaped_as_rfc8785_says():
    assert canonical.encode('\u20ac$\u000f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" {}",
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b'"\\u0041"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xff"',
        b'\xef\xbb\xbf"a"',
        b'"a"\n',
        b"1.0",
        b"1e3",
        b"-0",
        b"01",
        b"NaN",
        b"Infinity",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 50_000,
        "{}".encode("utf-16"),
    ],
)
def test_anything_else_is_refused(data):
    refused(data)


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        math.nan,
        [1, {"a": (2, 0.5)}],
        2**53,
        -(2**53),
        {1: "a"},
        "\ud800",
        {"\ud800": 1},
        b"bytes",
        {1, 2},
    ],
)
def test_what_has_no_encoding_is_our_mistake(value):
    with pytest.raises(Misuse):
        canonical.encode(value)


def test_a_value_nested_too_deeply_is_our_mistake():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Misuse):
        canonical.encode(value)


def nested(depth):
    return b"[" * depth + b"]" * depth


def test_values_nest_so_deep_and_no_deeper():
    assert canonical.encode(canonical.decode(nested(canonical.DEPTH))) == nested(canonical.DEPTH)
    with pytest.raises(Refused, match="deeper"):
        canonical.decode(nested(canonical.DEPTH + 1))
    siblings = b"[" + b",".join([b"{}"] * 1000) + b"]"
    in_text = b'["' + b"[{" * 100 + b'","\\"[","\\\\"]'
    for data in (siblings, in_text):
        assert canonical.encode(canonical.decode(data)) == data


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_hexfloats_are_exact(x):
    text = canonical.hexfloat(x)
    back = canonical.from_hexfloat(text)
    assert math.copysign(1.0, back) == math.copysign(1.0, x)
    assert back == x


def test_hexfloats_of_known_values():
    assert canonical.hexfloat(3.0) == "0x1.8000000000000p+1"
    assert canonical.hexfloat(-0.0) == "-0x0.0p+0"
    assert canonical.hexfloat(5e-324) == "0x0.0000000000001p-1022"


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_recorded(x):
    with pytest.raises(Misuse):
        canonical.hexfloat(x)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.5",
        "0x1.8p+1",
        "0X1.8000000000000P+1",
        "0x1.8000000000000p+01",
        "0x1.8000000000000p1",
        "0x1.8000000000000p+1\n",
        " 0x1.8000000000000p+1",
        "+0x1.8000000000000p+1",
        "0x2.0000000000000p+0",
        "0x0.0000000000000p-1022",
        "0x1.0000000000000p+1024",
        "0x1.0000000000000p-1023",
        "0x1.0000000000000p+9999",
        "inf",
        "nan",
    ],
)
def test_other_spellings_of_reals_are_refused(text):
    with pytest.raises(Refused) as caught:
        canonical.from_hexfloat(text)
    assert caught.value.code is Reason.MALFORMED


@given(st.integers(-62_135_596_800 * 10**6, 8_589_934_592 * 10**6))
def test_times_keep_their_microseconds(microseconds):
    if microseconds < -(2**33) * 10**6:
        microseconds -= microseconds % 10**6  # further back a double no longer holds microseconds
    text = canonical.utc(microseconds / 10**6)
    assert canonical.utc(canonical.from_utc(text)) == text
    assert round(canonical.from_utc(text) * 10**6) == microseconds


def test_known_times():
    assert canonical.utc(0) == "1970-01-01T00:00:00.000000Z"
    assert canonical.utc(1_795_132_800.25) == "2026-11-20T00:00:00.250000Z"
    assert canonical.from_utc("2026-11-20T00:00:00.250000Z") == 1_795_132_800.25
    assert canonical.from_utc("9999-12-31T23:59:59.000000Z") == 253_402_300_799


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-20T00:00:00Z",
        "2026-11-20T00:00:00.000Z",
        "2026-11-20t00:00:00.000000z",
        "2026-11-20 00:00:00.000000Z",
        "2026-11-20T00:00:00.000000+00:00",
        "2026-11-20T00:00:00.000000",
        "2026-11-20T00:00:00.000000Z\n",
        "2026-02-29T00:00:00.000000Z",
        "2026-11-20T24:00:00.000000Z",
        "2026-12-31T23:59:60.000000Z",
        "0000-01-01T00:00:00.000000Z",
        "٢٠٢٦-11-20T00:00:00.000000Z",
        "9999-12-31T23:59:59.999999Z",
    ],
)
def test_other_spellings_of_times_are_refused(text):
    with pytest.raises(Refused) as caught:
        canonical.from_utc(text)
    assert caught.value.code is Reason.MALFORMED


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 1e12, -1e12])
def test_what_is_no_time_is_our_mistake(seconds):
    with pytest.raises(Misuse):
        canonical.utc(seconds)


def test_sha256():
    assert canonical.sha256(b"").startswith("e3b0c442")
