"""The channel as the daemon sees it: nothing but whole, valid messages comes out."""

import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from silo_agent.training.channel import LINE, Channel, Incoming, parse

GOOD = [
    {"is": "ready", "kind": "managed"},
    {"is": "progress", "cycle": "l-1", "step": 1, "steps": 20, "loss": 2.5},
    {"is": "trained", "cycle": "l-1", "num_examples": 7, "steps": 20, "metrics": {"loss": 1}},
    {"is": "evaluated", "cycle": "l-1", "metrics": {"accuracy": 0.5}, "num_examples": 3},
    {
        "is": "failed",
        "cycle": "l-1",
        "reason": "task_failed",
        "exception": "KeyError",
        "code_line": "task.py:41",
    },
    {"is": "failed", "reason": "task_garbage", "exception": "OtherModel"},
]
BAD = [
    b"",
    b"[]",
    b"hello",
    b"\xff",
    b'{"is":"ready"}',
    b'{"is":"ready","kind":"other"}',
    b'{"is":"ready","kind":"managed","more":1}',
    b'{"is":"progress","cycle":"l","step":-1,"steps":2}',
    b'{"is":"progress","cycle":"l","step":"1","steps":2}',
    b'{"is":"progress","cycle":"../l","step":1,"steps":2}',
    b'{"is":"progress","cycle":"l","step":1,"steps":2,"loss":NaN}',
    b'{"is":"trained","cycle":"l","num_examples":1,"steps":1,"metrics":{"a\\nb":1}}',
    b'{"is":"failed","reason":"policy","exception":"KeyError"}',
    b'{"is":"failed","reason":"task_failed","exception":"patient 12 has the flu"}',
    b'{"is":"failed","reason":"task_failed","exception":"KeyError","code_line":"the flu"}',
    json.dumps({**GOOD[2], "metrics": {str(n): 1.0 for n in range(65)}}).encode(),
]


def pipe() -> tuple[Incoming, int]:
    reader, writer = os.pipe()
    return Incoming(reader), writer


def test_both_ends_speak_the_same_messages() -> None:
    incoming, writer = pipe()
    with open(os.devnull, "rb") as nothing, os.fdopen(writer, "wb") as out:
        channel = Channel(nothing, out)
        for message in GOOD:
            channel.send(message)  # type: ignore[arg-type]
        assert [dict(message) for message in incoming.messages(0)] == GOOD
        assert not incoming.ended
    assert list(incoming.messages(10)) == []
    assert incoming.ended


@pytest.mark.parametrize("line", BAD)
def test_what_is_no_message_is_garbage(line: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse(line)
    assert refused.value.code == Reason.TASK_GARBAGE
    assert "flu" not in str(refused.value)


@given(st.binary(max_size=200))
def test_no_line_raises_anything_else(line: bytes) -> None:
    with contextlib.suppress(Refused):
        parse(line)


@given(cuts=st.lists(st.integers(1, 40), max_size=30))
def test_messages_survive_any_cutting_into_pieces(cuts: list[int]) -> None:
    incoming, writer = pipe()
    data = b"".join(json.dumps(message).encode() + b"\n" for message in GOOD)
    seen: list[dict[str, object]] = []
    for cut in [*cuts, len(data)]:
        os.write(writer, data[:cut])
        data = data[cut:]
        seen += [dict(message) for message in incoming.messages(0)]
    assert seen == GOOD
    os.close(writer)
    incoming.close()


def test_a_line_without_end_is_cut_off() -> None:
    incoming, writer = pipe()
    os.write(writer, b"x" * LINE)
    assert list(incoming.messages(0)) == []
    os.write(writer, b"x")
    with pytest.raises(Refused) as refused:
        list(incoming.messages(0))
    assert refused.value.code == Reason.TASK_GARBAGE
    os.close(writer)
    incoming.close()


def test_progress_is_reported_at_most_five_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    incoming, writer = pipe()
    now = 100.0
    monkeypatch.setattr("silo_agent.training.channel.time.monotonic", lambda: now)
    with open(os.devnull, "rb") as nothing, os.fdopen(writer, "wb") as out:
        channel = Channel(nothing, out)
        for step in range(100):
            now = 100 + step / 50  # two seconds
            channel.report({"is": "progress", "cycle": "l", "step": step, "steps": 100})
        assert len(list(incoming.messages(0))) == 10
