import json
import time
from pathlib import Path

import pytest

from anabranch.errors import Reason, Refused, Unavailable
from silo_agent import enrol as module
from silo_agent import identity
from silo_agent.config import Home
from silo_agent.enrol import enrol
from silo_agent.policy import Policy, load_policy
from tests.silo_agent.world import SILO, World, free_port, make_authority


def test_enrolment_leaves_a_silo_that_denies_everything(world: World, home: Home) -> None:
    done = enrol(home, world.bundle(), time.time(), proxy=None)
    who = identity.load(home.identity)
    assert (done.uri, done.already, who.silo) == (who.uri, False, SILO)
    assert identity.exposed(home.identity) == []
    assert {p.stat().st_mode & 0o777 for p in home.identity.glob("*.key")} == {0o600}
    rules = load_policy(home.policy)
    assert rules == Policy()
    assert rules.run.isolation == "required"
    assert json.loads(home.log_view.read_bytes())["size"] == len(world.log.entries)
    assert "token" not in (home.identity / identity.FEDERATION).read_text()


def test_enrolling_twice_changes_nothing(world: World, home: Home) -> None:
    enrol(home, world.bundle(), time.time())
    before = {p.name: p.read_bytes() for p in home.identity.iterdir()}
    assert enrol(home, world.bundle(), time.time()).already
    assert {p.name: p.read_bytes() for p in home.identity.iterdir()} == before


@pytest.mark.parametrize("victim", ["_prepare", "_ask", "_finish"])
def test_killed_anywhere_the_same_command_completes_with_the_same_keys(
    world: World, home: Home, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    real = getattr(module, victim)

    def killed(*arguments: object) -> None:
        if victim != "_finish":
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, victim, killed)
        with pytest.raises(KeyboardInterrupt):
            enrol(home, world.bundle(), time.time())
    keys = {p.name: p.read_bytes() for p in home.identity.glob("*.key")}
    assert not enrol(home, world.bundle(), time.time()).already
    assert {p.name: p.read_bytes() for p in home.identity.glob("*.key")} == keys
    assert len(world.tokens) == 1


def test_a_wrong_pin_is_seen_before_anything_is_dialled(world: World, home: Home) -> None:
    world.stop()
    with pytest.raises(Refused, match="pinned") as refusal:
        enrol(home, world.bundle(ca_pins=("sha256:" + "0" * 64,)), time.time())
    assert refusal.value.code is Reason.BAD_CERTIFICATE
    assert not home.path.exists()


def test_an_expired_bundle_is_not_tried(world: World, home: Home) -> None:
    with pytest.raises(Refused, match="expired") as refusal:
        enrol(home, world.bundle(expires=time.time() - 60), time.time())
    assert refusal.value.code is Reason.BAD_TOKEN
    assert not world.tokens


def test_a_used_token_says_what_to_ask_for(world: World, home: Home, tmp_path: Path) -> None:
    enrol(home, world.bundle(), time.time())
    with pytest.raises(Refused, match="anabranch silo invite north") as refusal:
        enrol(Home(tmp_path / "other"), world.bundle(), time.time())
    assert refusal.value.code is Reason.BAD_TOKEN


def test_the_token_is_not_sent_to_whoever_answers(world: World, home: Home, tmp_path: Path) -> None:
    stranger = World(tmp_path, make_authority(tmp_path / "stranger"), world.log)
    stranger.serve()
    try:
        bundle = world.bundle(enrolment=f"localhost:{stranger.enrolment_port}")
        with pytest.raises(Refused, match="another CA") as refusal:
            enrol(home, bundle, time.time())
        assert refusal.value.code is Reason.BAD_CERTIFICATE
        assert not stranger.tokens
    finally:
        stranger.stop()


def test_an_unreachable_server_names_the_hop(world: World, home: Home) -> None:
    with pytest.raises(Unavailable, match=r"TCP.*refuses the connection"):
        enrol(home, world.bundle(enrolment=f"localhost:{free_port()}"), time.time())


def test_a_clock_that_is_behind_is_named(world: World, home: Home) -> None:
    with pytest.raises(Refused, match="clock is behind"):
        enrol(home, world.bundle(), time.time() - 86400)
    assert not (home.identity / identity.TLS_CHAIN).exists()


def test_a_log_without_the_enrolment_is_not_believed(
    world: World, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.log, "receipt", lambda index, size=None: type(world.log).receipt(world.log, 1))
    with pytest.raises(Refused, match="proved"):
        enrol(home, world.bundle(), time.time())
    assert not (home.identity / identity.TLS_CHAIN).exists()


def test_a_revoked_silo_enrols_again_with_new_keys(world: World, home: Home) -> None:
    enrol(home, world.bundle(), time.time())
    old = identity.load(home.identity)
    assert not enrol(home, world.bundle("t2"), time.time(), again=True).already
    new = identity.load(home.identity)
    assert old.key != new.key
    assert old.update_key.private_bytes_raw() != new.update_key.private_bytes_raw()


def test_a_home_of_another_silo_is_left_alone(world: World, home: Home) -> None:
    enrol(home, world.bundle(), time.time())
    with pytest.raises(Refused, match="belongs to"):
        enrol(home, world.bundle(silo="south"), time.time())


def test_a_token_that_is_not_accepted_leaves_the_old_identity(world: World, home: Home) -> None:
    enrol(home, world.bundle(), time.time())
    before = {p.name: p.read_bytes() for p in home.identity.iterdir()}
    with pytest.raises(Refused, match="anabranch silo invite north"):
        enrol(home, world.bundle(), time.time(), again=True)
    assert {p.name: p.read_bytes() for p in home.identity.iterdir()} == before
    with pytest.raises(Refused, match="belongs to"):
        enrol(home, world.bundle("t2", silo="south"), time.time(), again=True)
    assert {p.name: p.read_bytes() for p in home.identity.iterdir()} == before


def test_killed_before_the_new_identity_took_the_place_of_the_old_one(
    world: World, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(home, world.bundle(), time.time())
    old = identity.load(home.identity)

    def killed(_: Home) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_exchange", killed)
        with pytest.raises(KeyboardInterrupt):
            enrol(home, world.bundle("t2"), time.time(), again=True)
    assert identity.load(home.identity).key == old.key
    assert enrol(home, world.bundle("t2"), time.time(), again=True).already
    assert identity.load(home.identity).key != old.key
    assert not list(home.path.glob("identity.*"))
