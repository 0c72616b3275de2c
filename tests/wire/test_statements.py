import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.tlog.claim import PrivacyClaim
from anabranch.wire import canonical, limits, statements
from anabranch.wire.statements import DecisionStatement, EvaluationStatement, SeenCheckpoint, UpdateStatement

A, B, C, D = (letter * 64 for letter in "abcd")
UPDATE = UpdateStatement(
    update="0193-u",
    federation="demo.example",
    job="digits-1",
    lease="l-1",
    nonce="0" * 32,
    sequence=3,
    base_version=7,
    base_sha256=A,
    delta_sha256=B,
    bytes=1024,
    terms_sha256=C,
    manifest_sha256=D,
    steps=20,
    release="0.1.0",
    checkpoint=SeenCheckpoint(size=12, root=A),
)
CLAIM = PrivacyClaim(
    unit="example",
    sample_rate=canonical.hexfloat(0.02),
    noise_multiplier=canonical.hexfloat(1.1),
    max_grad_norm=canonical.hexfloat(1.0),
    steps=20,
    delta=canonical.hexfloat(1e-5),
    cycles=3,
    ledger_head=B,
)
DECISION = DecisionStatement(
    federation="demo.example",
    job="digits-1",
    terms_sha256=C,
    decision="approve",
    silo="north",
    time=canonical.utc(1_800_000_000),
)
EVALUATION = EvaluationStatement(
    federation="demo.example",
    job="digits-1",
    lease="l-2",
    nonce="1" * 32,
    version=7,
    view_sha256=B,
    split="validation",
    metrics={"accuracy": canonical.hexfloat(0.93), "loss": canonical.hexfloat(0.2)},
    num_examples=41,
)
ALL = [
    (UPDATE, statements.parse_update),
    (UPDATE.model_copy(update={"num_examples": 41}), statements.parse_update),
    (UPDATE.model_copy(update={"privacy": CLAIM}), statements.parse_update),
    (DECISION, statements.parse_decision),
    *((DECISION.model_copy(update={"revival": word}), statements.parse_decision) for word in (True, False)),
    (EVALUATION, statements.parse_evaluation),
]


def refused(parse, data):
    with pytest.raises(Refused) as caught:
        parse(data)
    return caught.value.code


@pytest.mark.parametrize(("statement", "parse"), ALL)
def test_round_trip(statement, parse):
    assert parse(statement.encode()) == statement


def test_an_update_is_an_in_toto_statement_about_its_delta():
    value = json.loads(UPDATE.encode())
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["subject"] == [{"name": "0193-u", "digest": {"sha256": B}}]
    assert value["predicateType"] == "https://anabranch.dev/update/v1"
    assert "delta_sha256" not in value["predicate"]
    assert "num_examples" not in value["predicate"]
    assert value["predicate"]["checkpoint"] == {"size": 12, "root": A}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", "silo"),
        ("sample_rate", "0.02"),
        ("noise_multiplier", 1),
        ("steps", 0),
        ("steps", True),
        ("cycles", "3"),
        ("ledger_head", "b" * 63),
        ("units", 1000),
    ],
)
def test_a_claim_of_privacy_is_closed(field, value):
    private = UPDATE.model_copy(update={"privacy": CLAIM})
    assert refused(statements.parse_update, _changed(private, ["predicate", "privacy", field], value)) is (
        Reason.MALFORMED
    )
    assert b"privacy" not in UPDATE.encode()


def test_a_decision_without_a_word_on_revival_has_the_bytes_it_always_had():
    assert (
        canonical.sha256(DECISION.encode())
        == "aa462da4563492dff3629d88fbc6d82068a5bb5bb6ff3fff94c4dede8744ad45"
    )
    assert refused(statements.parse_decision, _changed(DECISION, ["predicate", "revival"], "yes"))


def test_one_kind_is_not_another():
    for statement, _ in ALL:
        for other, parse in ALL:
            if type(other) is not type(statement):
                assert refused(parse, statement.encode()) is Reason.MALFORMED


def _changed(statement, path, value):
    tree = json.loads(statement.encode())
    *parents, last = path
    node = tree
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return canonical.encode(tree)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["_type"], "https://in-toto.io/Statement/v0.1"),
        (["extra"], 1),
        (["subject"], []),
        (["subject", 0, "name"], "a/b"),
        (["subject", 0, "name"], 1),
        (["subject", 0, "digest", "sha256"], B.upper()),
        (["subject", 0, "digest", "sha256"], B[1:]),
        (["subject", 0, "uri"], "x"),
        (["predicate"], []),
        (["predicate", "job"], None),
        (["predicate", "extra"], 1),
        (["predicate", "delta_sha256"], B),
        (["predicate", "update"], "other"),
        (["predicate", "sequence"], "3"),
        (["predicate", "sequence"], True),
        (["predicate", "sequence"], -1),
        (["predicate", "federation"], "Demo"),
        (["predicate", "base_sha256"], A + "\n"),
        (["predicate", "nonce"], "x" * 65),
        (["predicate", "release"], "a\nb"),
        (["predicate", "checkpoint"], {"size": 1}),
        (["predicate", "checkpoint", "extra"], 1),
    ],
)
def test_the_schema_is_closed(path, value):
    assert refused(statements.parse_update, _changed(UPDATE, path, value)) is Reason.MALFORMED


def test_a_null_is_a_second_spelling():
    tree = json.loads(UPDATE.encode())
    tree["predicate"]["num_examples"] = None
    assert refused(statements.parse_update, canonical.encode(tree)) is Reason.MALFORMED


def test_values_inside_evaluations_and_decisions():
    accuracy = ["predicate", "metrics", "accuracy"]
    for number in ("0.93", "nan", "0x1p+0", 1):
        assert (
            refused(statements.parse_evaluation, _changed(EVALUATION, accuracy, number)) is Reason.MALFORMED
        )
    many = {f"m{i}": canonical.hexfloat(0.0) for i in range(limits.METRICS + 1)}
    data = _changed(EVALUATION, ["predicate", "metrics"], many)
    assert refused(statements.parse_evaluation, data) is Reason.MALFORMED
    for key, value in (("decision", "maybe"), ("time", "2027-01-15"), ("silo", "North")):
        data = _changed(DECISION, ["predicate", key], value)
        assert refused(statements.parse_decision, data) is Reason.MALFORMED


def test_size_is_judged_first():
    assert refused(statements.parse_update, b"{" * (limits.ENVELOPE + 1)) is Reason.SIZE_LIMIT


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_is_refused_or_says_something_else(data):
    """No two payloads mean the same statement."""
    encoded = bytearray(UPDATE.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = statements.parse_update(bytes(encoded))
    except Refused:
        return
    assert found != UPDATE
