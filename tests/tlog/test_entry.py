"""Entries: one encoding each, closed schemas, nothing in them that could identify a site, and room for later types."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Misuse, Reason, Refused
from anabranch.tlog.details import SPANS
from anabranch.tlog.entry import (
    ENTRY_TYPES,
    MAX_ENTRY,
    Actor,
    Outcome,
    Target,
    encode_entry,
    parse_entry,
    seal,
    uuid7,
)
from anabranch.wire import canonical

EVERY_TYPE = sorted(ENTRY_TYPES)


def document(entry):
    return canonical.decode(encode_entry(entry))


def refused(value, reason=Reason.MALFORMED):
    with pytest.raises(Refused) as caught:
        parse_entry(value if isinstance(value, bytes) else canonical.encode(value))
    assert caught.value.code is reason
    return str(caught.value)


def without(value, key):
    return {name: item for name, item in value.items() if name != key}


def test_every_type_has_an_example(details):
    assert sorted(details) == EVERY_TYPE


@pytest.mark.parametrize("type", EVERY_TYPE)
def test_round_trip(make_entry, details, type):
    entry = make_entry(type)
    data = encode_entry(entry)
    assert parse_entry(data) == entry
    assert entry.understood
    assert isinstance(entry.detail, ENTRY_TYPES[type])
    assert canonical.decode(data)["detail"] == details[type]
    assert canonical.decode(data)["action"] == type.split(".", 1)[1]


@pytest.mark.parametrize("type", EVERY_TYPE)
def test_a_detail_is_closed_in_both_directions(make_entry, details, type):
    good = document(make_entry(type))
    for name in details[type]:
        optional = not ENTRY_TYPES[type].model_fields[name].is_required()
        less = {**good, "detail": without(good["detail"], name)}
        if optional and not (type == "model.published" and name == "parent"):
            assert parse_entry(canonical.encode(less)).understood
        else:
            refused(less)
            with pytest.raises(Misuse):
                make_entry(type, detail=less["detail"])
        refused({**good, "detail": {**good["detail"], name: None}})
        for wrong in (
            {},
            [],
            True,
            -1,
            2**53 - 1,
            "/srv/data/patients.csv",
            "10.1.2.3",
            "a sentence: by a person",
        ):
            if wrong != good["detail"][name]:
                try_wrong_value(good, name, wrong)
    refused({**good, "detail": {**good["detail"], "hostname": "a"}})
    with pytest.raises(Misuse, match="hostname"):
        make_entry(type, detail={**details[type], "hostname": "a"})


def try_wrong_value(good, name, wrong):
    """Only a field that is a count may take a large count, and only a set or list may be empty."""
    changed = {**good, "detail": {**good["detail"], name: wrong}}
    kind = type(good["detail"][name])
    if (wrong == 2**53 - 1 and kind is int) or (wrong in ({}, []) and kind in (dict, list)):
        return
    refused(changed)


@pytest.mark.parametrize("type", EVERY_TYPE)
def test_the_envelope_is_closed(make_entry, type):
    good = document(make_entry(type))
    for name in (
        "v",
        "id",
        "type",
        "time",
        "fed",
        "observer",
        "actor",
        "action",
        "target",
        "outcome",
        "detail",
    ):
        refused(without(good, name))
        refused({**good, name: None})
    for name in ("job", "model", "sealed", "sigs"):
        refused({**good, name: None})
    refused({**good, "trace": "0" * 32})
    refused({**good, "sigs": []})
    for part in ("actor", "target", "outcome", "sealed"):
        refused({**good, part: {**good[part], "ip": "a"}})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("v", 2),
        ("v", True),
        ("v", "1"),
        ("id", "7"),
        ("id", str(uuid.UUID(int=0))),
        ("type", "update"),
        ("type", "Update.received"),
        ("type", "update.received\n"),
        ("time", "2026-11-20T00:00:00Z"),
        ("time", "2026-11-20T00:00:00.000000+00:00"),
        ("time", "2026-02-30T00:00:00.000000Z"),
        ("fed", "https://fed.example/"),
        ("fed", "other.example"),
        ("fed", "10.1.2.3"),
        ("observer", "spiffe://other.example/aggregator/0"),
        ("observer", "spiffe://fed.example/aggregator/0?x"),
        ("observer", "aggregator"),
        ("actor", {"id": "spiffe://other.example/admin/ops", "auth": "mtls"}),
        ("actor", {"id": "spiffe://fed.example/silo/hosp-a/agent/0", "auth": "password"}),
        ("actor", {"id": "user:anna", "auth": "mtls"}),
        ("action", "retired"),
        ("target", {"kind": "update", "id": "../../etc/passwd"}),
        ("target", {"kind": "update", "id": "192.168.0.7"}),
        ("target", {"kind": "update", "id": "gpu7.ward.hosp-a.example"}),
        ("target", {"kind": "patient", "id": "a"}),
        ("target", {"kind": "update", "id": "a", "sha256": "A" * 64}),
        ("outcome", {"status": "fine"}),
        ("outcome", {"status": "failure", "reason": "No such file: /data/x"}),
        ("job", "Job 7"),
        ("model", {"name": "digits", "version": 12, "sha256": "a" * 64}),
        ("model", {"name": "digits", "version": "012", "sha256": "a" * 64}),
        ("sealed", {"commit": "a" * 64, "alg": "sha256", "fields": ["metrics"]}),
        ("sealed", {"commit": "a" * 64, "alg": "sha256-salted/v1", "fields": []}),
        ("sigs", [{"keyid": "a", "payloadType": "text/plain", "sig": "", "payload_sha256": "b" * 64}]),
    ],
)
def test_the_envelope_says_only_what_it_may(make_entry, field, wrong):
    refused({**document(make_entry("update.received")), field: wrong})


def test_signatures_are_64_bytes_in_one_spelling(make_entry):
    good = document(make_entry("update.received"))
    [sig] = good["sigs"]
    for wrong in ("A" * 85 + "B==", "A" * 86, "A" * 88, "A" * 84 + "====", "-" * 85 + "A=="):
        refused({**good, "sigs": [{**sig, "sig": wrong}]})


@pytest.mark.parametrize(
    ("kind", "id"),
    [
        ("log", "audit.fed.example/demo"),
        ("silo", "hosp-a"),
        ("certificate", "0f" * 20),
        ("certificate", "spiffe://fed.example/silo/hosp-a/agent/0"),
        ("job", "digits"),
        ("model", "digits"),
        ("model", "digits/12"),
        ("lease", "01a1f640-bc00-7fff-bfff-ffffffffffff"),
        ("server", "spiffe://fed.example/aggregator/0"),
    ],
)
def test_targets(kind, id):
    assert Target(kind=kind, id=id).id == id


@pytest.mark.parametrize(
    ("type", "change"),
    [
        ("silo.revoked", {"reason": "Anna Smith left; see /srv/tickets"}),
        ("silo.revoked", {"reason": "x" * 200}),
        ("job.paused", {"reason": "Because Of: that"}),
        ("job.paused", {"reason": "a" * 81}),
        ("lease.released", {"exception": "builtins.ValueError"}),
        ("lease.released", {"exception": "ValueError: patient 17"}),
        ("lease.released", {"code_line": "/home/anna/task.py:41"}),
        ("lease.released", {"code_line": "../task.py:41"}),
        ("lease.released", {"code_line": "task.py"}),
        ("lease.released", {"code_line": "model/../../task.py:41"}),
        ("lease.released", {"code_line": "a/" * 60 + "task.py:41"}),
        ("lease.issued", {"kind": "revive"}),
        ("lease.issued", {"nonce": "N" * 32}),
        ("auth.failed", {"method": "/etc/passwd.txt"}),
        ("auth.failed", {"count": 0}),
        ("model.published", {"version": 0}),
        ("model.published", {"parent": 13}),
        ("model.best", {"metric": "/srv/metrics"}),
        ("model.best", {"value": "0.5"}),
        ("model.best", {"value": "0x1p+0"}),
        ("model.best", {"value": "inf"}),
        ("model.exported", {"selector": "model.safetensors"}),
        ("log.genesis", {"vkey": "audit.fed.example/demo"}),
        ("log.genesis", {"ca_pins": ["a" * 64]}),
        ("cert.issued", {"identity": "spiffe://fed.example/silo/hosp-a"}),
        ("retention.pruned", {"versions": [{"first": 4, "last": 1}]}),
        ("retention.pruned", {"kind": "deltas"}),
        ("aggregation.performed", {"inputs": []}),
        ("aggregation.performed", {"scalars": {"beta": 1}}),
        ("aggregation.performed", {"scalars": {"Beta": canonical.hexfloat(1.0)}}),
        ("aggregation.performed", {"optimizer": {"lr": canonical.hexfloat(1.0)}}),
        ("aggregation.performed", {"optimizer": {"name": "sgd", "lr": "1.0"}}),
        ("aggregation.performed", {"optimizer": {"name": "s g d"}}),
    ],
)
def test_details_say_only_what_they_may(make_entry, details, type, change):
    with pytest.raises(Misuse):
        make_entry(type, detail={**details[type], **change})


def test_a_first_version_has_no_parent(make_entry, details):
    first = without({**details["model.published"], "version": 0}, "parent")
    assert "parent" not in document(make_entry("model.published", detail=first))["detail"]


@pytest.mark.parametrize(
    "type", ["job.approved", "job.denied", "job.withdrawn", "model.evaluated", "update.received"]
)
def test_what_a_silo_said_carries_its_signature(make_entry, type):
    with pytest.raises(Misuse, match="signature"):
        make_entry(type, sigs=())
    refused(without(document(make_entry(type)), "sigs"))


def test_an_evaluation_is_sealed_and_job_entries_name_their_job(make_entry):
    with pytest.raises(Misuse, match="seals"):
        make_entry("model.evaluated", sealed=None)
    for type in EVERY_TYPE:
        if type.startswith(("job.", "model.", "lease.", "aggregation.")) or type == "update.retired":
            with pytest.raises(Misuse, match="job"):
                make_entry(type, job=None)
    assert make_entry("update.refused", job=None, sigs=()).job is None


def test_absent_fields_are_left_out(make_entry, details):
    entry = make_entry("silo.lost", job=None, sealed=None, sigs=(), outcome=Outcome(status="failure"))
    assert {"job", "model", "sealed", "sigs"} & set(document(entry)) == set()
    assert document(entry)["outcome"] == {"status": "failure"}


def test_an_unknown_type_still_parses(make_entry):
    """A later release may bring its own targets and ways to authenticate along with a new type."""
    later = {
        **document(make_entry("update.received")),
        "type": "witness.cosigned",
        "action": "cosigned",
        "actor": {"id": "spiffe://fed.example/aggregator/0", "auth": "oidc"},
        "target": {"kind": "teacher", "id": "t-1"},
        "detail": {"anything": [1, None, {"seed": "12345678901234567890"}], "text": "Ünïcode"},
    }
    data = canonical.encode(later)
    entry = parse_entry(data)
    assert not entry.understood
    assert entry.detail == later["detail"]
    with pytest.raises(Misuse):
        encode_entry(entry)
    refused({**later, "detail": []})
    refused({**later, "action": "skipped"})
    refused({**later, "observer": "somebody"})


def test_only_known_types_are_written(make_entry):
    with pytest.raises(Misuse, match="no entry type"):
        make_entry("silo.vanished")


@pytest.mark.parametrize("type", ["auth.failed", "update.refused"])
def test_codes_are_written_from_the_list_and_read_from_later_lists(make_entry, details, type):
    for reason in Reason:
        assert (
            document(make_entry(type, detail={**details[type], "code": reason}))["detail"]["code"]
            == reason.value
        )
    later = make_entry(type, detail={**details[type], "code": "robust_outlier"})
    with pytest.raises(Misuse, match="robust_outlier"):
        encode_entry(later)
    read = {**document(make_entry(type)), "detail": {**details[type], "code": "robust_outlier"}}
    assert parse_entry(canonical.encode(read)).understood


def test_size_is_bounded_before_parsing(make_entry, details):
    refused(b"[" * (MAX_ENTRY + 1), Reason.SIZE_LIMIT)
    refused(b"[" * MAX_ENTRY)
    many = {**details["silo.revoked"], "certificates": ["a" * 64] * 1200}
    with pytest.raises(Misuse, match="exceeds"):
        encode_entry(make_entry("silo.revoked", detail=many))


def test_a_hundred_inputs_fit_into_an_entry(make_entry, details):
    detail = details["aggregation.performed"]
    [one] = detail["inputs"]
    widest = {**one, "silo": "hospital-with-a-long-name", "weight": canonical.hexfloat(-1 / 3e200)}
    encode_entry(make_entry("aggregation.performed", detail={**detail, "inputs": [widest] * 100}))


def test_the_most_spans_fit_into_an_entry(make_entry, details):
    wide = {"first": canonical.MAX_INT - 1, "last": canonical.MAX_INT}
    encode_entry(
        make_entry("retention.pruned", detail={**details["retention.pruned"], "versions": [wide] * SPANS})
    )


def test_entries_are_frozen(make_entry):
    entry = make_entry("silo.lost")
    with pytest.raises(ValueError, match="frozen"):
        entry.job = "other"


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(data):
    with pytest.raises(Refused):
        parse_entry(data)


@given(st.data())
def test_no_changed_byte_keeps_an_entry_the_same(make_entry, data):
    encoded = encode_entry(make_entry("aggregation.performed"))
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + bytes([encoded[at] ^ data.draw(st.integers(1, 255))]) + encoded[at + 1 :]
    try:
        entry = parse_entry(changed)
    except Refused:
        return
    if entry.understood:
        assert encode_entry(entry) == changed


def test_seal_commits_to_values_under_a_salt():
    values = {"num_examples": 412, "metrics": {"loss": canonical.hexfloat(0.5)}}
    sealed = seal(values, bytes(range(32)))
    assert sealed.fields == ("metrics", "num_examples")
    opened = (
        b"fl-audit-commit/v1\x00"
        + bytes(range(32))
        + b'{"metrics":{"loss":"0x1.0000000000000p-1"},"num_examples":412}'
    )
    assert sealed.commit == canonical.sha256(opened)
    assert seal(values, bytes(32)).commit != sealed.commit
    assert seal({**values, "num_examples": 413}, bytes(range(32))).commit != sealed.commit
    with pytest.raises(Misuse):
        seal(values, b"short")


def test_uuid7_of_rfc9562():
    """The example of RFC 9562, appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F."""
    random = (0xCC3).to_bytes(2) + (0x18C4DC0C0C07398F).to_bytes(8)
    assert uuid7(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_uuid7_sorts_by_time(milliseconds, random):
    text = uuid7(milliseconds, random)
    parsed = uuid.UUID(text)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
    assert parsed.int >> 80 == milliseconds
    if milliseconds:
        assert uuid7(milliseconds - 1, b"\xff" * 10) < text


def test_uuid7_takes_what_fits():
    for milliseconds, random in ((-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9)), (0, bytes(16))):
        with pytest.raises(Misuse):
            uuid7(milliseconds, random)


def test_parts_are_checked_when_built():
    with pytest.raises(ValueError, match="pattern"):
        Actor(id="https://fed.example/", auth="mtls")
    with pytest.raises(ValueError, match="does not name"):
        Target(kind="silo", id="spiffe://fed.example/aggregator/0")
