"""Every hostile message: an answer with a reason, the owner in the server's log, little memory, nobody else disturbed."""

import pytest

from tests.hostility.messages import ADMIN, MEMBER, MESSAGES, STRANGER, Hostile
from tests.hostility.target import MIB, Target, extra_memory, until

MOST = 64 * MIB
WHO = {MEMBER: "silo mallory", ADMIN: "spiffe://federation.local/admin/admin", STRANGER: "ipv"}  # its address


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_hostile_message(target: Target, message: Hostile) -> None:
    with extra_memory(target.pid) as memory:
        assert message.send(target) == message.expected
    assert memory.extra <= MOST, f"{memory.extra / MIB:.0f} MiB"
    until(lambda: _owner_named(target, message), "the connection's owner stands in the server's log")
    target.honest_call()


def _owner_named(target: Target, message: Hostile) -> bool:
    """Refused by us with the reason, refused and recorded as an update, or cut off by gRPC over its size or encoding."""
    who, method, reason = WHO[message.by], message.method, message.expected
    lines = [
        *target.said(event="refused", method=method, reason=reason),
        *(
            {**line, "who": f"silo {line['silo']}"}
            for line in target.said(event="update refused", reason=reason)
        ),
        *target.said(event="a call was cut off", method=method),
    ]
    # gRPC has forgotten a stranger's address where it cut off the call itself.
    return any(
        line["who"].startswith(who) or (message.by == STRANGER and line["peer"] == "") for line in lines
    )


def test_a_session_that_is_cut_off_is_named_every_time(target: Target) -> None:
    """gRPC may show the break as an end before it cancels: one in five was taken for an agent that had left."""
    [message] = [one for one in MESSAGES if one.name == "4 MB of empty leases in a heartbeat"]
    before = len(target.said(event="a call was cut off", method=message.method))
    for _ in range(times := 20):
        assert message.send(target) == message.expected
    until(
        lambda: len(target.said(event="a call was cut off", method=message.method)) == before + times,
        f"{times} calls cut off stand in the server's log",
    )
