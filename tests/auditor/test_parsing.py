"""The fast way of reading entries gives the verdict of the contract's own parser, and the same entry."""

import json
from re import _parser as sre

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, model_validator

from anabranch.errors import Refused
from anabranch.tlog.details import DETAILS
from anabranch.tlog.entry import TARGET_ID, Actor, Entry, ModelRef, Outcome, Sealed, Sig, Target, parse_entry
from anabranch.tlog.fields import Id
from anabranch.wire import canonical, statements
from auditor.export import Export
from auditor.parsing import parse, parse_update, revive
from auditor.pin import pin
from auditor.plain import ESCAPED, JUDGED, Unread, entry_of, plain, plain_update, value
from auditor.reading import work
from auditor.signatures import revived
from auditor.verify import verify
from tests.auditor import revived as revivals
from tests.auditor import trouble
from tests.auditor.book import Book
from tests.auditor.story import Story

PIECES = [b"", b" ", b"0", b"null", b'"', b"\\u0041", "é".encode(), b"-", b"1.0"]


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """Entries of a whole story, and one of a type nobody knows."""
    story = trouble.busy(Story(Book(tmp_path_factory.mktemp("leaves") / "export")).begin(revivals.REVIVED))
    revivals.perform(story, "r-1", [one for _, one in story.merged])
    revivals.skip(story, "r-1", "late")
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


EDGES = [
    *("", "a", "a-", "A b", 'a"b', "a\\b", "a\n", "é", "a" * 64, "a" * 65, "0" * 64, "f" * 63),
    *(
        "fed.example",
        "other.example",
        "10.0.0.1",
        "spiffe://fed.example/aggregator/0",
        "spiffe://fed.example/silo/a",
    ),
    *(
        "spiffe://other.example/silo/a/agent/0",
        "spiffe://fed.example/silo/a/agent/0",
        "spiffe://fed.example/admin/",
    ),
    *(
        "digits-1/0",
        "digits-1/01",
        "log",
        "model",
        "certificate",
        "server",
        "mtls",
        "none",
        "success",
        "denied",
    ),
    *("1969-12-31T00:00:00.000000Z", "2026-02-28T23:59:59.999999Z", "2026-02-29T00:00:00.000000Z"),
    *("2028-02-29T00:00:00.000000Z", "2026-04-31T00:00:00.000000Z", "2026-12-31T23:59:60.000000Z"),
    *("2199-12-31T24:00:00.000000Z", "2026-13-01T00:00:00.000000Z", "2026-01-00T00:00:00.000000Z"),
    *("2241-10-30T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "2026-01-01T00:00:00Z"),
    *("0x0.0p+0", "-0x0.0p+0", "0x1.8000000000000p+1", "0x1.8000000000000p+01", "0x1.8000000000000p-0"),
    *(
        "0x1.0000000000000p+1023",
        "0x1.0000000000000p+1024",
        "0x1.0000000000000p-1022",
        "0x1.0000000000000p-1023",
    ),
    *(
        "0x0.0000000000001p-1022",
        "0x0.0000000000000p-1022",
        "0x1.0000000000000p+999",
        "0x1.0000000000000p-999",
    ),
    *(0, 1, 2, -1, 10**15 - 1, 10**15, 2**53 - 1, 2**53, True, None, 1.0, [], {}, ["a"], [{}]),
]


def text_of(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_values_at_the_edge_are_judged_alike_everywhere(leaves):
    """Each value of an entry of each type replaced by each of `EDGES`."""
    told = {json.loads(data)["type"]: data for data in leaves.book.entries}
    accepted = 0
    for original in told.values():
        for path in places(json.loads(original)):
            for edge in EDGES:
                data = text_of(replaced(json.loads(original), path, edge))
                if plain(data):
                    accepted += 1
                    assert revive(data) == parse_entry(data), (path, edge)
    assert accepted > len(told) * 20


def test_values_at_the_edge_of_a_statement_are_judged_alike(leaves):
    payloads = (path.read_bytes() for path in (leaves.book.directory / "objects").iterdir())
    original = next(data for data in payloads if b"update/v1" in data)
    assert plain_update(original)
    for path in places(json.loads(original)):
        for edge in [*EDGES, ...]:
            data = text_of(replaced(json.loads(original), path, edge))
            assert judged(parse_update, data) == judged(statements.parse_update, data), (path, edge)


def test_nearly_all_entries_are_plain(leaves):
    """Those of the other types have a rule of their own, or free keys."""
    others = {type for type in DETAILS if entry_of(type) is None}
    assert others == {"model.published", "aggregation.performed", "revival.performed", "retention.pruned"}
    for data in leaves.book.entries:
        assert plain(data) == (json.loads(data)["type"] in DETAILS.keys() - others), data


def test_no_pattern_admits_what_needs_an_escape():
    """Such as a quote: the next text would be taken for the rest of this one."""
    schemas = [
        model.__pydantic_core_schema__ for model in (*DETAILS.values(), Entry, statements.UpdateStatement)
    ]
    found = {pattern for schema in schemas for pattern in patterns(schema)} | set(TARGET_ID.values())
    assert len(found) > 20
    assert statements.LABEL in found
    for pattern in found | set(JUDGED.values()):
        admitted = letters(sre.parse(ESCAPED.get(pattern, pattern)))
        assert admitted <= set(map(chr, range(0x20, 0x7F))) - {'"', "\\"}, pattern


def patterns(schema):
    items = (
        schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    )
    for name, inner in items:
        if name == "pattern":
            yield inner
        elif name not in ("metadata", "serialization"):
            yield from patterns(inner)


def letters(tree):
    """Every character that a parsed pattern can match; of a part that is no set of them, all."""
    found = set()
    for kind, inside in tree:
        match kind:
            case sre.LITERAL:
                found.add(chr(inside))
            case sre.RANGE:
                found |= set(map(chr, range(inside[0], inside[1] + 1)))
            case sre.IN:
                found |= letters(inside)
            case sre.MAX_REPEAT | sre.SUBPATTERN:
                found |= letters(inside[-1])
            case sre.BRANCH:
                found |= set().union(*map(letters, inside[1]))
            case sre.AT:
                pass
            case _:
                found |= set(map(chr, range(256)))
    return found


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "str"},
        {"type": "str", "pattern": "^a$", "to_lower": True},
        {"type": "str", "pattern": "a"},
        {"type": "int", "ge": 0},
        {"type": "int", "ge": 0, "le": 10},
        {"type": "int", "ge": 0, "le": 2**53 - 1, "multiple_of": 2},
        {
            "type": "function-after",
            "function": {"function": len},
            "schema": {"type": "str", "pattern": "^a$"},
        },
        {"type": "dict"},
        {"type": "any"},
    ],
)
def test_a_schema_that_says_more_is_not_read(schema):
    with pytest.raises(Unread):
        value(schema)


def test_a_model_with_a_rule_of_its_own_is_not_read():
    class Ruled(BaseModel):
        one: Id

        @model_validator(mode="after")
        def _never(self):
            raise ValueError

    class Hooked(BaseModel):
        one: Id

        def model_post_init(self, _):
            raise ValueError

    for model in (Ruled, Hooked):
        with pytest.raises(Unread):
            value(model.__pydantic_core_schema__)


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
