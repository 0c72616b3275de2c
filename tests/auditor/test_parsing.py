"""The fast way of reading entries gives the verdict of the contract's own parser, and the same entry."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Refused
from anabranch.tlog.details import DETAILS
from anabranch.tlog.entry import Actor, Entry, ModelRef, Outcome, Sealed, Sig, Target, parse_entry
from anabranch.wire import canonical, statements
from auditor.export import Export
from auditor.parsing import parse, parse_update, revive
from auditor.pin import pin
from auditor.reading import work
from auditor.signatures import revived
from auditor.verify import verify
from tests.auditor import trouble
from tests.auditor.book import Book
from tests.auditor.story import Story

PIECES = [b"", b" ", b"0", b"null", b'"', b"\\u0041", "é".encode(), b"-", b"1.0"]


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """Entries of a whole story, and one of a type nobody knows."""
    story = trouble.busy(Story(Book(tmp_path_factory.mktemp("leaves") / "export")).begin())
    left = story.update("b", story.lease("b"))
    story.change("job.completed")
    story.retire(left)
    strange = json.loads(story.book.entries[-1]) | {
        "type": "witness.seen",
        "action": "seen",
        "detail": {"x": [1]},
    }
    story.book.append(canonical.encode(strange))
    return story


def judged(parser, data):
    try:
        return parser(data)
    except Refused as refusal:
        return refusal.code, str(refusal)


def test_the_story_tells_nearly_every_type(leaves):
    told = {json.loads(data)["type"] for data in leaves.book.entries}
    assert set(DETAILS) - told <= {"model.encoded", "job.aborted", "retention.pruned"}


def test_revived_entries_are_the_parsed_ones(leaves):
    for data in leaves.book.entries:
        entry, again = parse_entry(data), revive(data)
        assert parse(data) == entry
        assert again == entry
        assert type(again.detail) is type(entry.detail)
        assert again.model_dump() == entry.model_dump()


def test_no_default_hides_behind_the_fast_way():
    """A field may be left out only if that means None: what is left out and what is said cannot be confused."""
    for schema in DETAILS.values():
        assert all(field.is_required() or field.default is None for field in schema.model_fields.values())
    envelope = (Entry, Actor, Target, Outcome, ModelRef, Sealed, Sig)
    defaults = {
        name
        for schema in envelope
        for name, field in schema.model_fields.items()
        if not field.is_required() and field.default is not None
    }
    assert defaults == {"v", "status", "alg"}  # of which `parse` asks whether they are there


def test_no_schema_turns_one_value_into_another(leaves):
    """Each value of each entry replaced by one of another kind, or left out: accepted and refused alike."""
    others = [None, "1", 1, True, [], {}, ...]
    told = {}
    for original in leaves.book.entries:
        told.setdefault(json.loads(original)["type"], original)
    for original in told.values():
        for path in places(json.loads(original)):
            for other in others:
                data = canonical.encode(replaced(json.loads(original), path, other))
                found = judged(parse, data)
                if isinstance(found, Entry):  # what it does not accept it has asked `parse_entry` about
                    assert found == parse_entry(data), (path, other)


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from places(inner, (*path, name))


def replaced(document, path, other):
    holder = document
    for name in path[:-1]:
        holder = holder[name]
    if other is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return document


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_get_the_same_verdict(leaves, data):
    changed = bytearray(data.draw(st.sampled_from(leaves.book.entries)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        cut = data.draw(st.integers(0, 2))
        changed[at : at + cut] = data.draw(st.sampled_from(PIECES))
    assert judged(parse, bytes(changed)) == judged(parse_entry, bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one | {"job": None},
        lambda one: one | {"v": 9007199254740993},
        lambda one: one | {"v": True},
        lambda one: {key: value for key, value in one.items() if key != "v"},
        lambda one: one | {"outcome": {}},
        lambda one: one | {"extra": "é"},
        lambda one: one | {"detail": one["detail"] | {"extra": 1}},
    ],
    ids=["null", "long number", "true for 1", "no version", "no status", "not ASCII", "unknown field"],
)
def test_what_is_nearly_right_is_refused_alike(leaves, change):
    for original in leaves.book.entries:
        data = json.dumps(
            change(json.loads(original)), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        assert judged(parse, data) == judged(parse_entry, data)


def test_keys_twice_white_space_and_order_are_refused_alike(leaves):
    for original in leaves.book.entries:
        text = original.decode()
        for data in (
            text.replace("{", '{"v":1,', 1),
            text.replace(",", ", ", 1),
            text + "\n",
            json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        ):
            assert judged(parse, data.encode()) == judged(parse_entry, data.encode())
            assert isinstance(judged(parse, data.encode()), tuple)


def test_statements_get_the_same_verdict(leaves):
    payloads = [path.read_bytes() for path in (leaves.book.directory / "objects").iterdir()]
    payloads = [data for data in payloads if b"update/v1" in data]
    assert payloads
    for payload in payloads:
        assert parse_update(payload) == statements.parse_update(payload)
        value = json.loads(payload)
        predicate = value["predicate"]
        for changed in (
            value | {"more": 1},
            value | {"predicate": predicate | {"num_examples": None}},
            value | {"predicate": predicate | {"update": "x"}},
            value | {"predicate": predicate | {"steps": "5"}},
            value | {"predicateType": statements.DECISION_TYPE},
            value | {"subject": value["subject"] * 2},
            value | {"subject": [value["subject"][0] | {"more": 1}]},
        ):
            data = canonical.encode(changed)
            assert judged(parse_update, data) == judged(statements.parse_update, data)
            assert isinstance(judged(parse_update, data), tuple)


def test_workers_and_one_process_find_the_same(story):
    """An honest signature, a foreign one, an entry outside its schema, a statement that is gone."""
    story.begin()
    story.update("a", story.lease("a"))
    story.update("b", story.lease("b"), private=story.update_key("a"))
    gone = story.update("a", story.lease("a"))
    story.book.append(story.book.entries[-1][:-1])
    statement = json.loads(story.book.entries[-2])["sigs"][0]["payload_sha256"]
    story.book.path(statement).unlink()
    export = Export(story.book.write())
    alone, shared = (verify(export, pin(export, None), processes=count).report for count in (1, 2))
    assert alone.document() == shared.document()
    assert len(alone.findings) == 3
    assert gone.id


def test_a_worker_calls_nothing_good_that_is_not(story):
    story.begin()
    story.update("a", story.lease("a"))
    story.update("b", story.lease("b"), private=story.update_key("a"))
    keys = {}
    for silo in ("a", "b"):
        public = story.update_key(silo).public_key().public_bytes_raw()
        keys[canonical.sha256(public)] = public
    leaves = [*story.book.entries, b"{}"]
    bad, good = work(story.book.directory, leaves, keys)
    assert bad == [len(leaves) - 1]
    signed = [revived(one) for one in good.values()]
    assert [one.update for one in signed] == ["update-2", "update-4"]  # by which key is judged in order
    for data in leaves[:-1]:
        entry = parse_entry(data)
        if entry.sigs:
            changed = json.loads(data)
            changed["sigs"][0]["sig"] = "A" * 86 + "=="
            assert work(story.book.directory, [canonical.encode(changed)], keys) == ([], {})
