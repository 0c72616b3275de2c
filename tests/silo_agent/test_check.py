"""Every hop that can fail, failing: `check` names it and skips the rest."""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from anabranch.errors import Reason, Refused
from anabranch.wire import identity as wire
from silo_agent import check as module
from silo_agent import identity
from silo_agent.approval import Decisions
from silo_agent.check import Verdict, check, first_failure
from silo_agent.config import Home
from silo_agent.main import app
from silo_agent.training.isolation import Isolation
from tests.silo_agent.world import World, free_port, make_authority, server_pair

DAY = 86400.0


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "isolation", lambda *_: Isolation("landlock", "Landlock ABI 4"))


def failing(home: Home, clock: Callable[[], float] = time.time) -> Verdict:
    verdicts = check(home, clock)
    broken = first_failure(verdicts)
    assert broken is not None, verdicts
    position = [v.hop for v in verdicts].index(broken.hop)
    assert all(v.status in ("ok", "warning") for v in verdicts[:position])
    assert all(v.status == "skipped" for v in verdicts[position + 1 :])
    assert len(verdicts) == len(module.HOPS)
    assert broken.remedy
    return broken


def dial(home: Home, address: str, proxy: str | None = None) -> None:
    home.settings.write_text(f'server = "{address}"\n' + (f'proxy = "{proxy}"\n' if proxy else ""))


def bind_data(home: Home, extra: str = "") -> None:
    (home.path / "records").mkdir(exist_ok=True)
    home.policy.write_text(f'[data.records]\npath = "{home.path / "records"}"\n{extra}')


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that is not our server, on a port of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"localhost:{listener.getsockname()[1]}"
    listener.close()


def test_an_enrolled_silo_with_data_passes_every_hop(world: World, enrolled: Home) -> None:
    bind_data(enrolled)
    verdicts = check(enrolled)
    assert first_failure(verdicts) is None, verdicts
    assert [v.hop for v in verdicts if v.status == "skipped"] == []


def test_a_home_that_was_never_enrolled(home: Home) -> None:
    home.path.mkdir()
    home.policy.write_text("")
    assert failing(home).hop == "identity"


def test_a_misspelt_setting_and_a_misspelt_rule(enrolled: Home) -> None:
    enrolled.settings.write_text("proxi = 'x'")
    assert (failing(enrolled).hop, "proxi" in failing(enrolled).meaning) == ("configuration", True)
    enrolled.settings.write_text("")
    enrolled.policy.write_text("[rum]")
    assert (failing(enrolled).hop, "rum" in failing(enrolled).meaning) == ("policy", True)


def test_a_key_that_others_can_read(enrolled: Home) -> None:
    (enrolled.identity / identity.UPDATE_KEY).chmod(0o644)
    broken = failing(enrolled)
    assert (broken.hop, "update.key" in broken.meaning) == ("identity", True)


def test_a_ca_file_that_is_not_the_pinned_one(enrolled: Home, tmp_path: Path) -> None:
    (enrolled.identity / identity.CA).write_bytes(make_authority(tmp_path / "other").ca_pem)
    assert failing(enrolled).hop == "CA pin"


def test_a_clock_that_is_a_day_behind(enrolled: Home) -> None:
    broken = failing(enrolled, lambda: time.time() - DAY)
    assert (broken.hop, "behind" in broken.meaning) == ("clock", True)


def test_a_clock_that_is_a_day_ahead(world: World, enrolled: Home) -> None:
    broken = failing(enrolled, lambda: time.time() + DAY)
    assert (broken.hop, "1.0 days ahead" in broken.meaning) == ("server clock", True)


def test_an_expired_certificate(enrolled: Home) -> None:
    broken = failing(enrolled, lambda: time.time() + 4 * DAY)
    assert (broken.hop, "expired" in broken.meaning, "silo invite north" in broken.remedy) == (
        "certificate",
        True,
        True,
    )


def test_a_name_that_does_not_resolve(enrolled: Home) -> None:
    dial(enrolled, "no-such-host.invalid:443")
    assert failing(enrolled).hop == "DNS"


def test_a_closed_port(enrolled: Home) -> None:
    dial(enrolled, f"localhost:{free_port()}")
    broken = failing(enrolled)
    assert (broken.hop, "refuses the connection" in broken.meaning) == ("TCP", True)


def test_the_wrong_host_of_the_right_federation(world: World, enrolled: Home) -> None:
    key, chain = server_pair(world.authority, ["fl.example.org"])
    port, _ = world.start(key, chain)
    dial(enrolled, f"localhost:{port}")
    broken = failing(enrolled)
    assert (broken.hop, "its certificate is for fl.example.org" in broken.meaning) == ("TLS", True)


def test_intercepted_tls(world: World, enrolled: Home, tmp_path: Path) -> None:
    """A corporate proxy that shows a certificate of its own CA for our host."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key = wire.new_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corp TLS Inspection")])
    now = datetime.now(UTC)
    shown = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    port, _ = world.start(wire.private_pem(key), shown.public_bytes(serialization.Encoding.PEM))
    dial(enrolled, f"localhost:{port}")
    broken = failing(enrolled)
    assert broken.hop == "TLS"
    assert "Corp TLS Inspection" in broken.meaning
    assert "decrypts TLS" in broken.meaning


def test_a_server_under_another_ca(world: World, enrolled: Home, tmp_path: Path) -> None:
    for federation, said in (
        ("fed.example", "under another CA"),
        ("other.example", "federation 'other.example'"),
    ):
        other = make_authority(tmp_path / federation, federation)
        port, _ = world.start(*server_pair(other, ["localhost"]))
        dial(enrolled, f"localhost:{port}")
        broken = failing(enrolled)
        assert (broken.hop, said in broken.meaning) == ("TLS", True)


def test_a_lapsed_server_certificate(world: World, enrolled: Home) -> None:
    key, chain = server_pair(world.authority, ["localhost"], time.time() - 10, 5 / DAY)
    port, _ = world.start(key, chain)
    dial(enrolled, f"localhost:{port}")
    broken = failing(enrolled)
    assert (broken.hop, "expired" in broken.meaning, "clock" in broken.remedy) == ("TLS", True, True)


def test_something_that_is_not_tls(enrolled: Home) -> None:
    with listening(lambda connection: connection.sendall(b"SSH-2.0-server\r\n")) as address:
        dial(enrolled, address)
        broken = failing(enrolled)
        assert (broken.hop, "breaks off" in broken.meaning) == ("TLS", True)


def test_a_revoked_silo_and_one_that_is_not_on_the_list(world: World, enrolled: Home) -> None:
    world.refuse["ListJobs"] = Refused(Reason.REVOKED_IDENTITY, "silo north was revoked by an administrator")
    broken = failing(enrolled)
    assert (broken.hop, "revoked" in broken.meaning, "--again" in broken.remedy) == ("enrolment", True, True)
    world.refuse["ListJobs"] = Refused(Reason.BAD_CERTIFICATE, "this certificate is not on the allow-list")
    assert failing(enrolled).hop == "enrolment"


def test_a_server_of_another_protocol(world: World, enrolled: Home) -> None:
    world.refuse["Session"] = Refused(Reason.MALFORMED, "this server speaks protocol 2: update the agent")
    broken = failing(enrolled)
    assert (broken.hop, "update the agent" in broken.meaning) == ("protocol", True)


def test_data_that_is_not_there_or_not_bound(world: World, enrolled: Home, tmp_path: Path) -> None:
    enrolled.policy.write_text('[data.records]\npath = "/no/such/place"')
    broken = failing(enrolled)
    assert (broken.hop, "/no/such/place" in broken.meaning) == ("data", True)
    enrolled.policy.write_text("")
    code = tmp_path / "code"
    code.mkdir()
    (code / "task.py").write_text("")
    terms = world.offer(code)
    broken = failing(enrolled)
    assert (broken.hop, "asks for data 'records'" in broken.meaning) == ("data", True)
    Decisions(enrolled.decisions).record(terms.digest(), "tiny-1", "deny")
    assert first_failure(check(enrolled)) is None


def test_a_missing_distribution(world: World, enrolled: Home, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "task.py").write_text("")
    world.offer(code, extra='requires = ["no-such-thing>=1.4"]')
    bind_data(enrolled)
    broken = failing(enrolled)
    assert (broken.hop, "no-such-thing>=1.4, which is not installed" in broken.meaning) == ("requires", True)


def test_job_code_that_cannot_be_fenced_off(
    world: World, enrolled: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind_data(enrolled)
    monkeypatch.setattr(module, "isolation", lambda *_: Isolation("none", "NOT ISOLATED: no Landlock"))
    assert failing(enrolled).hop == "isolation"
    bind_data(enrolled, '[run]\nisolation = "allowed-without"')
    verdicts = {v.hop: v for v in check(enrolled)}
    assert (verdicts["isolation"].status, first_failure(list(verdicts.values()))) == ("warning", None)


def test_a_policy_for_gpus_that_are_not_there(
    world: World, enrolled: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    bind_data(enrolled, "[run]\ngpus = [0]")
    assert failing(enrolled).hop == "GPU"


def tunnel(connection: socket.socket) -> None:
    """A real HTTP CONNECT proxy, for one connection."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    first, *headers = request.decode().split("\r\n")
    if "Proxy-Authorization: Basic dXNlcjpwYXNz" not in headers:
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        connection.close()
        return
    host, port = first.split()[1].rsplit(":", 1)
    try:
        there = socket.create_connection((host, int(port)))
    except OSError:
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        connection.close()
        return
    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=pump, args=(there, connection), daemon=True).start()
    pump(connection, there)


def test_through_a_proxy(world: World, enrolled: Home) -> None:
    bind_data(enrolled)
    with listening(tunnel) as proxy:
        dial(enrolled, f"localhost:{world.port}", f"http://user:pass@{proxy}")
        verdicts = check(enrolled)
        assert first_failure(verdicts) is None, verdicts
        dial(enrolled, f"localhost:{world.port}", f"http://{proxy}")
        broken = failing(enrolled)
        assert (broken.hop, "407" in broken.meaning, "login" in broken.remedy) == ("TCP", True, True)
        dial(enrolled, f"localhost:{free_port()}", f"http://user:pass@{proxy}")
        assert (failing(enrolled).hop, "503" in failing(enrolled).meaning) == ("TCP", True)
    dial(enrolled, f"localhost:{world.port}", f"http://localhost:{free_port()}")
    assert (failing(enrolled).hop, "proxy" in failing(enrolled).meaning) == ("TCP", True)


def test_the_command_names_the_hop_and_exits_with_1(enrolled: Home) -> None:
    import json

    dial(enrolled, f"localhost:{free_port()}")
    done = CliRunner().invoke(app, ["check", "--dir", str(enrolled.path), "--json"])
    document = json.loads(done.stdout)
    assert (done.exit_code, document["ok"], document["failed"]) == (1, False, "TCP")
    assert {"hop", "status", "meaning", "remedy"} == set(document["hops"][0])
    assert "TCP fails" in done.stderr
    assert grpc.__version__


def test_a_directory_that_cannot_be_written(
    world: World, enrolled: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(enrolled.log_view))

    monkeypatch.setattr(module, "LogView", read_only)
    broken = failing(enrolled)
    assert (broken.hop, "Read-only file system" in broken.meaning) == ("enrolment", True)
