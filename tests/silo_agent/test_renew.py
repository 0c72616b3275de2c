import contextlib
import threading
import time
from pathlib import Path

import pytest

from anabranch import durable
from anabranch.errors import Corrupt, Refused
from anabranch.wire import identity as wire
from silo_agent import identity
from silo_agent.agent import connect
from silo_agent.config import Home
from silo_agent.renew import due, keep_renewed, renew
from tests.silo_agent.world import World


def serial(home: Home) -> int:
    return identity.load(home.identity).leaf.serial_number


def test_renewal_makes_a_new_key_and_calls_go_on_with_it(world: World, enrolled: Home) -> None:
    before = identity.load(enrolled.identity)
    with connect(enrolled) as connection:
        after = renew(enrolled.identity, connection.client, connection.log, time.time())
        assert connection.client.jobs(0) == []
    assert after.key != before.key
    assert after.who.uri == before.uri
    assert after.leaf.serial_number == serial(enrolled) != before.leaf.serial_number
    assert not list(enrolled.identity.glob("next.*"))
    assert identity.exposed(enrolled.identity) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(6))
def test_killed_at_any_durable_step_key_and_certificate_still_fit(
    world: World, enrolled: Home, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = iter(range(100))
    before = serial(enrolled)

    def dying(real: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            if enrolled.identity in Path(str(arguments[0])).parents and next(calls) == step:
                raise Killed
            return real(*arguments, **named)  # type: ignore[operator]

        return call

    with connect(enrolled) as connection:
        with monkeypatch.context() as patched:
            for name in ("write", "rename"):
                patched.setattr(durable, name, dying(getattr(durable, name)))
            with contextlib.suppress(Killed):
                renew(enrolled.identity, connection.client, connection.log, time.time())
        found = identity.load(enrolled.identity)
        assert wire.load_private(found.key).public_key() == found.leaf.public_key()
        assert (found.leaf.serial_number != before) == (step > 1)
        renew(enrolled.identity, connection.client, connection.log, time.time())
    assert not list(enrolled.identity.glob("next.*"))


def test_a_certificate_for_somebody_else_is_not_installed(
    world: World, enrolled: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.authority.issue_silo
    monkeypatch.setattr(
        type(world.authority), "issue_silo", lambda self, key, silo, *rest: real(key, "south", *rest)
    )
    before = serial(enrolled)
    with connect(enrolled) as connection, pytest.raises(Refused, match="south"):
        renew(enrolled.identity, connection.client, connection.log, time.time())
    assert serial(enrolled) == before


def test_a_pair_that_does_not_fit_is_damage(enrolled: Home) -> None:
    identity.born(enrolled.identity / identity.TLS_KEY, wire.private_pem(wire.new_tls_key()))
    with pytest.raises(Corrupt, match="not the key"):
        identity.load(enrolled.identity)


def test_it_is_due_at_a_third_of_the_life(enrolled: Home) -> None:
    who = identity.load(enrolled.identity)
    start, end = who.leaf.not_valid_before_utc.timestamp(), who.leaf.not_valid_after_utc.timestamp()
    assert due(who, 0.0) == pytest.approx(start + (end - start) / 3)
    assert due(who, -1.0) < due(who, 0.0) < due(who, 1.0) < start + (end - start) / 2


def test_an_interrupted_renewal_is_repeated_at_the_next_start(world: World, enrolled: Home) -> None:
    identity.born(enrolled.identity / identity.NEXT_KEY, wire.private_pem(wire.new_tls_key()))
    before, stop, renewed = serial(enrolled), threading.Event(), threading.Event()
    with connect(enrolled) as connection:
        arguments = (enrolled.identity, connection.client, connection.log, stop, renewed.set)
        thread = threading.Thread(target=keep_renewed, args=arguments)
        thread.start()
        assert renewed.wait(10)
        stop.set()
        thread.join(10)
    assert serial(enrolled) != before
