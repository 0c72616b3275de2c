"""Changes that keep an input of its kind: most random bytes are refused at the first one, and prove little."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import rfc8785
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

Shape = Callable[[bytes, Random], bytes]

TEXTS = (
    "", "\0", "\x1b[31m", "\n", "\u2028", "[/red]", "é", "²", "/", "..", "-", "+", "a" * 70, "A" * 5000, "0" * 400,
    "9" * 400, "nan", "inf", "1e999", "1e999d", "-1s", "sha256:", "0x1.8000000000000p+1", "spiffe://",
    "a; os_name ~= 'x'",
    "2026-11-20T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "20:00+01:00-06:00", "a" * 64, "\ud800",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400)
# Values of JSON that cannot be built as values here, by the text that stands for them.
RAW = {
    "@deep@": b"[" * 2000 + b"]" * 2000, "@long@": b"9" * 5000, "@inf@": b"1e999", "@nan@": b"NaN", "@zero@": b"-0",
}  # fmt: skip
PIECES = (
    b"", b"\0", b"\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"-", b"=", b"+", b"0", b"null",
    b"\xff", b"\xef\xbb\xbf", b"\\u0041", b"\\ud800", "é".encode(), b"1e999", b"NaN", b"-0", b"\n\n", b"\r\n",
    b"[" * 100_000, b"[" * 1500, b'{"a":' * 1500, b"9" * 5000, b"A" * 600, b"\0" * 512, b"\xff" * 8, b"-0000000001",
    b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"-----BEGIN TRUSTED CERTIFICATE-----\n",
)  # fmt: skip


def octets(data: bytes, random: Random) -> bytes:
    """Some bytes flipped, cut, repeated or put in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randint(0, len(changed))
        match random.randint(0, 5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randint(0, 7)
            case 1:
                del changed[at : at + random.choice((1, 2, 8, 64, len(changed)))]
            case 2:
                changed[at:at] = changed[at : at + random.choice((1, 8, 64, 512))]
            case 3:
                changed[at:at] = random.choice(PIECES)
            case 4:
                piece = random.choice(PIECES)
                changed[at : at + len(piece)] = piece
            case _:
                width = random.choice((1, 2, 4, 8))
                changed[at : at + width] = (random.choice(NUMBERS) % 256**width).to_bytes(
                    width, random.choice(("big", "little"))
                )
    return bytes(changed)


def json_document(data: bytes, random: Random) -> bytes:
    """One value replaced, left out, repeated or renamed; in canonical form where there is one."""
    if random.randint(0, 3) == 0:
        return octets(data, random)
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return octets(data, random)
    for _ in range(random.randint(1, 2)):
        _change(random, root)
    return _spelled(root[0] if root else None)


def _change(random: Random, root: Any) -> None:
    places: list[tuple[Any, Any]] = []
    _places(root, places)
    if not places:
        return
    container, key = random.choice(places)
    match random.randint(0, 8):
        case 0 if container is not root:
            del container[key]
        case 1 if isinstance(container, dict):
            container[random.choice(TEXTS)] = container[key]
        case 1:
            container.append(container[key])
        case 2:
            container[key] = json.loads(json.dumps(random.choice(places)[0]))
        case 3 if isinstance(container[key], str):
            container[key] = octets(container[key].encode("utf-8", "replace"), random).decode(
                "utf-8", "replace"
            )
        case 3 | 4:
            container[key] = random.choice(NUMBERS)
        case 5:
            container[key] = random.choice(
                (None, True, False, 1.5, 1e308, [], {}, [[]], {"a": {}}, [None] * 70)
            )
        case 6:
            container[key] = random.choice(list(RAW))
        case _:
            container[key] = random.choice(TEXTS)


def _places(container: Any, found: list[tuple[Any, Any]]) -> None:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in items:
        if len(found) > 2000:
            return
        found.append((container, key))
        if isinstance(value, dict | list):
            _places(value, found)


def _spelled(value: Any) -> bytes:
    try:
        spelled = rfc8785.dumps(value)
    except (ValueError, RecursionError):
        spelled = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    for name, raw in RAW.items():
        spelled = spelled.replace(f'"{name}"'.encode(), raw)
    return spelled


LITERALS = (
    "1", "-1", "0", "9" * 5000, "inf", "nan", "1e999", "true", '""', '"\\u0000"', '"\\u001B[31m"', "[]", "{}", "[[]]",
    "[" * 3000, "{a=" * 1500, "1979-05-27", "1979-05-27T07:32:00+23:59", "07:32:00", '"' + "9" * 400 + 'GiB"',
    '"inf d"', '"nans"', '"1e308d"', '["20:00+01:00-06:00"]', '"20:00-06:00"', '"http://[::1"', '"[::1]:99999"',
)  # fmt: skip


def toml_text(data: bytes, random: Random) -> bytes:
    """One value, key or line of a TOML file changed."""
    if random.randint(0, 3) == 0:
        return octets(data, random)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(random.randint(1, 2)):
        at = random.randrange(len(lines))
        key, equals, value = lines[at].partition("=")
        match random.randint(0, 4):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(
                    at,
                    random.choice(("[a]", "[job]", "[[job]]", "a.b.c = 1", "x = " + random.choice(LITERALS))),
                )
            case 2 if equals:
                lines[at] = random.choice(("x", '"\\u001B"', "a.b", "é")) + "=" + value
            case _ if equals:
                lines[at] = f"{key}= {random.choice(LITERALS)}"
            case _:
                lines.append(lines[at])
    return "\n".join(lines).encode("utf-8", "replace")


def message(kind: type[Message]) -> Shape:
    """One field of a protobuf message, or of one inside it, set to something odd."""

    def change(data: bytes, random: Random) -> bytes:
        if random.randint(0, 4) == 0:
            return octets(data, random)
        try:
            changed = kind.FromString(data)
        except DecodeError:
            return octets(data, random)
        for _ in range(random.randint(1, 2)):
            _set(changed, random)
        return changed.SerializeToString()

    return change


def _set(found: Message, random: Random) -> None:
    fields = [field for field in found.DESCRIPTOR.fields if not _is_map(field)]
    if not fields:
        return
    field = random.choice(fields)
    nested = field.type == FieldDescriptor.TYPE_MESSAGE
    if field.is_repeated:
        values = getattr(found, field.name)
        if values and random.randint(0, 2) == 0:
            del values[random.randrange(len(values))]
        elif nested:
            values.add()
            _set(values[random.randrange(len(values))], random)
        else:
            values.extend([_odd(field, random)] * random.choice((1, 1, 9, 65, 1100)))
    elif nested:
        _set(getattr(found, field.name), random)
    elif random.randint(0, 5) == 0:
        found.ClearField(field.name)
    else:
        setattr(found, field.name, _odd(field, random))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _odd(field: FieldDescriptor, random: Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return random.choice((b"", b"\0" * 31, b"\xff" * 32, b"{}", *PIECES))
        case FieldDescriptor.CPPTYPE_STRING:
            return random.choice(TEXTS[:-1])  # protobuf itself refuses a lone surrogate
        case FieldDescriptor.CPPTYPE_BOOL:
            return bool(random.randint(0, 1))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return random.choice((0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan")))
        case FieldDescriptor.CPPTYPE_INT64:
            return random.choice((0, 1, -1, 2**53, 2**63 - 1, -(2**63)))
        case FieldDescriptor.CPPTYPE_UINT64:
            return random.choice((0, 1, 2**31, 2**53, 2**63, 2**64 - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return random.choice((0, 1, 2**31, 2**32 - 1))
    return random.choice((0, 1, 2, 99))


def tensor_file(data: bytes, random: Random) -> bytes:
    """The JSON header of a safetensors file changed, and its length with it; the data sometimes too."""
    length = int.from_bytes(data[:8], "little")
    if random.randint(0, 4) == 0 or length > len(data) - 8:
        return octets(data, random)
    header, body = data[8 : 8 + length], data[8 + length :]
    header = json_document(header, random)
    if random.randint(0, 3) == 0:
        header = header.decode("utf-8", "replace").encode(
            random.choice(("utf-16-le", "utf-8-sig", "utf-32-be"))
        )
    if random.randint(0, 3) == 0:
        body = octets(body, random)
    return len(header).to_bytes(8, "little") + header + body


def packed_file(count: int) -> Shape:
    """One of the `count` blocks changed and its length with it, or any bytes."""

    def change(data: bytes, random: Random) -> bytes:
        begin = 12 + int.from_bytes(data[8:12], "little")
        at = begin + 4 * count
        if random.randint(0, 4) == 0 or at > len(data):
            return octets(data, random)
        blocks = []
        for place in range(begin, at, 4):
            blocks.append(data[at : at + int.from_bytes(data[place : place + 4], "little")])
            at += len(blocks[-1])
        number = random.randrange(count)
        blocks[number] = octets(blocks[number], random)
        table = b"".join(len(block).to_bytes(4, "little") for block in blocks)
        return data[:begin] + table + b"".join(blocks)

    return change
