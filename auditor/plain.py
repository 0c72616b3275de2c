"""Plain entries and updates, told by one regular expression each, which is made from the schemas.

`plain` and `plain_update` say yes only to bytes that `parse_entry` and `statements.parse_update` accept, in one pass and
without making anything of them. A no says nothing: the schemas themselves have the last word, and on a type that says
what is not read here (a rule of its own, keys that are free) the only one.

Canonical JSON of a closed schema is a regular language unless keys are free: members come in their order, and no text
that a schema allows here needs an escape. A value is matched up to its closing quote and never given up again, so
matching takes time linear in the bytes, whatever they are.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from anabranch.tlog.entry import (
    AUTH,
    ENTRY_TYPES,
    MAX_ENTRY,
    OF_A_JOB,
    SIGNED,
    TARGET_ID,
    TARGET_KINDS,
    Actor,
    Entry,
    Target,
)
from anabranch.tlog.fields import FEDERATION, ID, IDENTITY, is_hexfloat, is_time
from anabranch.wire import canonical, limits, statements
from anabranch.wire.statements import UpdateStatement

Match = Callable[[bytes], re.Match[bytes] | None]
EXACT = 10**15 - 1  # the largest integer of 15 digits
_DAY = "(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = f"(?:(?:0[13578]|1[02])-(?:{_DAY}|29|3[01])|(?:0[469]|11)-(?:{_DAY}|29|30)|02-{_DAY})"  # no leap day
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
# Patterns that admit less than what they stand for, and nothing that is wrong: texts a function of the schemas judges,
# and texts that may need an escape.
JUDGED: Mapping[tuple[Any, str], str] = MappingProxyType(
    {
        (is_time, canonical.UTC_TIME): f"^(?:19[7-9]|2[01][0-9])[0-9]-{_DATE}T{_CLOCK}$",
        (
            is_hexfloat,
            canonical.HEXFLOAT,
        ): r"^-?(?:0x0\.0p\+0|0x1\.[0-9a-f]{13}p(?:\+0|[+-][1-9][0-9]{0,2}))$",
    }
)
ESCAPED: Mapping[str, str] = MappingProxyType({statements.LABEL: r"^[ !#-\[\]-~]{1,64}$"})
_AT, _END = b'"type":"', b'","v":1}'  # a canonical entry ends with its type
_TYPES = {type.encode(): type for type in ENTRY_TYPES}
_NONE: Mapping[str, str] = MappingProxyType({})


class Unread(Exception):
    """A schema says what is not read here."""


def plain(data: bytes) -> bool:
    """Whether `data` is a plain entry, such as `parse_entry` accepts."""
    if len(data) > MAX_ENTRY or not data.endswith(_END):
        return False
    type = _TYPES.get(data[data.rfind(_AT) + len(_AT) : -len(_END)])
    match = None if type is None else entry_of(type)
    return match is not None and match(data) is not None


def plain_update(payload: bytes) -> bool:
    """Whether `payload` is a plain statement, such as `statements.parse_update` accepts."""
    return len(payload) <= limits.ENVELOPE and _update()(payload) is not None


def value(schema: Mapping[str, Any]) -> str:
    """The pattern of JSON values that a schema of pydantic-core accepts. Raises Unread."""
    match {key: said for key, said in schema.items() if key not in ("metadata", "strict")}:
        case {"type": "str", "pattern": pattern, **rest} if not rest:
            return text(pattern)
        case {"type": "str", "pattern": pattern, "max_length": longest, **rest} if not rest:
            return f'(?="[^"]{{0,{longest}}}")' + text(pattern)
        case {
            "type": "function-after",
            "function": {"function": judge},
            "schema": {"type": "str", "pattern": pattern, **rest},
        } if (judge, pattern) in JUDGED and rest.keys() <= {"metadata"}:
            return text(JUDGED[judge, pattern])
        case {"type": "literal", "expected": words, **rest} if not rest:
            return _one_of(words)
        case {"type": "int", "ge": 0, "le": most, **rest} if most > EXACT and not rest:
            return "(?>0|[1-9][0-9]{0,14})"
        case {"type": "int", "ge": 1, "le": most, **rest} if most > EXACT and not rest:
            return "(?>[1-9][0-9]{0,14})"
        case {"type": "bool", **rest} if not rest:
            return "(?>true|false)"
        case {"type": "int", "ge": 1, "le": 1, **rest} if not rest:
            return "1"
        case {"type": "tuple", "items_schema": [one], "variadic_item_index": 0, **rest} if (
            not rest or rest == {"min_length": 1}
        ):
            return rf"\[(?:{value(one)}(?:,{value(one)})*+)" + "?+" * (not rest) + r"\]"
        case {"type": "model", "cls": model}:
            return _model(model)
    raise Unread(schema["type"])


def text(pattern: str) -> str:
    """A JSON string. Raises Unread unless the pattern is of a whole text."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        raise Unread(pattern)
    return f'(?>"(?:{ESCAPED.get(pattern, pattern)[1:-1]})")'


def _one_of(words: Iterable[str]) -> str:
    return f'(?>"(?:{"|".join(map(re.escape, sorted(words)))})")'


def _object(members: Mapping[str, str], optional: Collection[str] = ()) -> str:
    """After each member comes another one or the end."""
    written = (
        rf'(?>"{name}":{members[name]}(?:,(?=")|(?=\}})))' + "?+" * (name in optional)
        for name in sorted(members)
    )
    return rf"\{{{''.join(written)}\}}"


def _model(model: type[BaseModel], known: Mapping[str, str] = _NONE, needed: Collection[str] = ()) -> str:
    return _object(*_members(model, known, needed))


def _members(
    model: type[BaseModel], known: Mapping[str, str] = _NONE, needed: Collection[str] = ()
) -> tuple[dict[str, str], set[str]]:
    """The pattern of each field, and the fields that may be left out. Raises Unread.

    `known`: patterns of some fields, by a caller who also answers for what the model says of its fields together.
    `needed`: fields that the caller wants there.
    """
    schema: Any = model.__pydantic_core_schema__
    while known and schema["type"] in ("definitions", "function-after"):
        schema = schema["schema"]
    match schema:
        case {
            "type": "model",
            "config": config,
            "schema": {"type": "model-fields", "fields": fields},
            **rest,
        } if (
            config.keys() <= {"title", "strict", "extra_fields_behavior"}
            and rest.keys() <= {"cls", "metadata", "ref", "custom_init", "root_model"}
            and not (rest["custom_init"] or rest["root_model"])
        ):
            pass
        case _:
            raise Unread(model.__name__)
    members, optional = {}, set()
    for name, field in fields.items():
        if not field.keys() <= {"type", "schema", "metadata"}:
            raise Unread(name)
        match field["schema"]:
            case {"type": "default", "default": None, "schema": {"type": "nullable", "schema": inner}}:
                optional.add(name)
            case {"type": "default", "schema": inner} | inner:  # a default that is written all the same
                pass
        members[name] = known.get(name) or value(inner)
    return members, optional - set(needed)


@cache
def entry_of(type: str) -> Match | None:
    """Entries of a type, with all that `Entry` says of its fields together. None: the type's own schema is not read here."""
    domain = FEDERATION[1:-1]
    try:
        detail = value(ENTRY_TYPES[type].__pydantic_core_schema__)
    except Unread:
        return None
    targets = [
        _model(Target, {"id": text(pattern), "kind": _one_of(of)})
        for pattern, of in [(ID, TARGET_KINDS), *((TARGET_ID[kind], [kind]) for kind in TARGET_ID)]
    ]
    actor = text(IDENTITY.replace(domain, f"(?P<fed>{domain})", 1))
    known = {
        "type": _one_of([type]),
        "action": _one_of([type.partition(".")[2]]),
        "actor": _model(Actor, {"id": actor, "auth": _one_of(AUTH)}),
        "observer": text(IDENTITY.replace(domain, "(?P=fed)", 1)),
        "fed": '"(?P=fed)"',
        "target": f"(?>{'|'.join(targets)})",
        "detail": detail,
    }
    rules = {"job": type in OF_A_JOB, "sigs": type in SIGNED, "sealed": type == "model.evaluated"}
    return _compiled(_model(Entry, known, [name for name, needed in rules.items() if needed]))


@cache
def _update() -> Match:
    """As `UpdateStatement.encode` writes it."""
    members, optional = _members(UpdateStatement)
    name, digest = members.pop("update"), members.pop("delta_sha256")
    subject = _object({"name": name, "digest": _object({"sha256": digest})})
    return _compiled(
        _object(
            {
                "_type": _one_of([statements.STATEMENT_TYPE]),
                "subject": rf"\[{subject}\]",
                "predicateType": _one_of([statements.UPDATE_TYPE]),
                "predicate": _object(members, optional),
            }
        )
    )


def _compiled(pattern: str) -> Match:
    return re.compile(pattern.encode()).fullmatch
