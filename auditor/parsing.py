"""Entries and statements, faster: the same verdict as the contract's own parsers, which have the last word.

Most are told by `plain`. Nearly all others are ASCII without long numbers, and for those the C encoder of `json` writes
exactly what RFC 8785 asks for: keys sorted, no white space, the same escapes. So such bytes are canonical when encoding
their value gives them again. Whatever is unusual, or not accepted here, goes to `parse_entry` and
`statements.parse_update`.

`revive` makes an entry of bytes that were accepted before, perhaps in another process, without judging them again.
"""

import json
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from anabranch.tlog.entry import ENTRY_TYPES, MAX_ENTRY, Actor, Entry, Outcome, parse_entry
from anabranch.wire import canonical, statements
from anabranch.wire.statements import UpdateStatement
from auditor.plain import plain, plain_update

FEW = 4096
LONG = 15  # digits of an integer that canonical JSON allows, whatever they are
_new = object.__new__
_set = object.__setattr__  # past the models' own, which are frozen


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not an integer")


def _short(text: str) -> int:
    if len(text) > LONG:
        raise ValueError(f"{text[:40]} may be too long")
    return int(text)


_decode = json.JSONDecoder(parse_int=_short, parse_float=_no_number, parse_constant=_no_number).decode
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")
).encode


def parse(data: bytes) -> Entry:
    """As `parse_entry`, with its errors."""
    if plain(data):
        return revive(data)
    value = _canonical(data)
    if value is None:
        return parse_entry(data)
    try:
        entry = Entry.model_validate(value)
    except ValidationError:
        return parse_entry(data)  # which says why not
    return entry if _complete(data, value) else parse_entry(data)


def parse_update(payload: bytes) -> UpdateStatement:
    """As `statements.parse_update`, with its errors."""
    if not plain_update(payload):
        return statements.parse_update(payload)
    value = from_json(payload, cache_strings="keys")
    (subject,) = value["subject"]
    said = value["predicate"] | {"update": subject["name"], "delta_sha256": subject["digest"]["sha256"]}
    statement: UpdateStatement = revive_model(UpdateStatement, said)
    return statement


def _canonical(data: bytes) -> Any:
    """The value of `data` if it is of the usual kind and canonical; None: it may be either all the same."""
    if len(data) > MAX_ENTRY or not data.isascii():
        return None
    text = data.decode("ascii")
    if not canonical.shallow(text):
        return None
    try:
        value = _decode(text)
        return value if _encode(value) == text else None
    except (ValueError, RecursionError):
        return None


def _complete(data: bytes, value: dict[str, Any]) -> bool:
    """Whether a value that is valid for an entry is the entry's own document.

    No schema turns one JSON value into another, so it can only differ in a null that should be left out, or in the few
    fields that have a default and should be there.
    """
    sealed = value.get("sealed")
    return (
        b"null" not in data
        and "v" in value
        and "status" in value["outcome"]
        and (sealed is None or "alg" in sealed)
    )


def revive(data: bytes) -> Entry:
    """The entry of bytes that `parse` accepts. Of any other bytes it makes nonsense."""
    value = from_json(data, cache_strings="keys")
    detail = value["detail"]
    schema = ENTRY_TYPES.get(value["type"])
    entry: Entry = revive_model(Entry, value)
    entry.__dict__["detail"] = detail if schema is None else revive_model(schema, detail)
    return entry


def revive_model(model: type[BaseModel], value: dict[str, Any]) -> Any:
    """An instance of `model` with the fields of a `value` that was valid for it; `value` becomes part of it."""
    names, defaults, nested = _plan(model)
    fields = value if len(value) == len(names) else {**defaults, **value}
    for name, convert in nested:
        inner = fields[name]
        if inner is not None:
            fields[name] = convert(inner)
    made = _new(model)
    _set(made, "__dict__", fields)
    _set(made, "__pydantic_fields_set__", names)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


@cache
def _plan(model: type[BaseModel]) -> tuple[set[str], dict[str, Any], list[tuple[str, Callable[[Any], Any]]]]:
    """All fields, defaults of those that may be left out, and how JSON becomes those that are no plain values."""
    defaults = {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
    converters = {
        name: _converter(field.annotation)
        for name, field in model.model_fields.items()
        if (model, name) != (Entry, "detail")  # which depends on the type
    }
    names = set(model.model_fields)
    return names, defaults, [(name, convert) for name, convert in converters.items() if convert is not None]


def _converter(annotation: Any) -> Callable[[Any], Any] | None:
    """None: the JSON value is the field's value."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _converter(inner[0])
    if origin in (Union, UnionType):
        (only,) = (one for one in inner if one is not type(None))
        return _converter(only)
    if origin is tuple:
        each = _converter(inner[0])
        return tuple if each is None else lambda values: tuple(map(each, values))
    if annotation in (Actor, Outcome):
        return _few(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return lambda value: revive_model(annotation, value)
    return None


def _few(model: type[BaseModel]) -> Callable[[Any], Any]:
    """For frozen models that a log repeats a few of: one instance each."""
    known: dict[tuple[Any, ...], Any] = {}

    def convert(value: dict[str, Any]) -> Any:
        key = tuple(value.items())
        made = known.get(key)
        if made is None:
            if len(known) >= FEW:
                known.clear()
            made = known[key] = revive_model(model, value)
        return made

    return convert
