"""The reviver's daemon against a real server edge, with processes that fail in every way a job's code can."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.errors import Refused, Unavailable
from anabranch.terms import JobTerms, parse_job_file
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.revivals import RevivalPerformed, RevivalSkipped
from anabranch.wire import canonical, identity
from anabranch.wire.tensors import write_tensors
from reviver import worker
from reviver.client import Client
from reviver.device import Device
from reviver.files import JobFiles
from reviver.main import _identified, move_in
from reviver.worker import Worker
from server import setup
from silo_agent.config import Home
from silo_agent.receipts import LogView
from silo_agent.training import archive
from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher
from tests.server.edge import Edge
from tests.server.harness import ADMIN, MANIFEST, ORIGIN, FakeSilo, Server
from tests.server.reviver import REVIVED, allow, logged, publish

pytestmark = pytest.mark.timeout(560)  # processes start, and share their cores with others
PATIENCE = 500.0  # seconds until a test gives up waiting


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server")
    yield running
    running.core.close()


@pytest.fixture
def edge(server: Server) -> Iterator[Edge]:
    running = Edge(server).start()
    yield running
    running.stop()


def submit(server: Server, folder: Path, how: str) -> tuple[str, JobTerms]:
    """A job whose code is an archive, as `reviver.files` unpacks it."""
    (folder / "code").mkdir()
    (folder / "code" / "task.py").write_text("")
    code, initial = archive.pack(folder / "code"), server.core.jobs.spool()
    zeros = {spec.name: np.zeros(spec.shape, np.float32) for spec in MANIFEST.specs}
    text = f'[job]\nname = "digits"\ntask = "task.py:Digits"\nparams = {{ how = "{how}" }}\n{REVIVED}'
    terms = JobTerms(
        file=parse_job_file(text),
        archive_sha256=canonical.sha256(code),
        initial_sha256=write_tensors(initial, MANIFEST, zeros),
        manifest_sha256=MANIFEST.digest(),
    )
    job, _ = server.core.jobs.submit(ADMIN, terms.encode(), MANIFEST.encode(), code, initial)
    return job, terms


@dataclass
class Running:
    """A worker in a thread of its own, and a job two silos have merged updates in."""

    edge: Edge
    home: Home
    client: Client
    job: str
    terms: JobTerms
    silos: list[FakeSilo]
    launcher: Launcher
    stopping: threading.Event
    devices: tuple[Device, ...] = (Device("cpu", {"torch": "2.13.0"}),)
    failure: BaseException | None = None

    def begin(self, client: Any = None) -> None:
        origin, key = ORIGIN, NoteVerifier.from_vkey(self.edge.server.signer.vkey)
        log = LogView(self.home.log_view, self.home.evidence, origin, key, self.client.consistency)
        used = client or self.client
        isolated = Isolation("none", "a test")
        daemon = Worker(self.home, used, log, self.launcher, isolated, self.devices, self.stopping)

        def run() -> None:
            try:
                daemon.run()
            except BaseException as error:
                self.failure = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def until(self, holds: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if self.failure is not None:
                raise self.failure
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.05)

    def publish(self, *values: float) -> None:
        for silo, value in zip(self.silos, values, strict=False):
            publish(self.edge.server, self.job, self.terms, (silo, value))

    def performed(self, count: int) -> list[RevivalPerformed]:
        kind = RevivalPerformed
        self.until(lambda: len(logged(self.edge.server, kind)) >= count, f"{count} results")
        return logged(self.edge.server, kind)

    def skipped(self, count: int) -> list[tuple[str, str | None]]:
        kind = RevivalSkipped
        self.until(lambda: len(logged(self.edge.server, kind)) >= count, f"{count} without a result")
        return [(one.reason, one.why) for one in logged(self.edge.server, kind)]

    def told(self) -> list[dict[str, Any]]:
        lines = (self.home.job(self.job) / "told.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def run(edge: Edge, tmp_path: Path, request: Any) -> Iterator[Running]:
    how = getattr(request, "param", "")
    job, terms = submit(edge.server, tmp_path, how)
    silos = [edge.server.enrol(name) for name in "ab"]
    for silo in silos:
        allow(edge.server, silo, job, terms, True)
    home, member = Home(tmp_path / "home"), edge.reviver()
    home.identity.mkdir(parents=True)
    place = setup._request(tmp_path / "reviver" / "r", edge.membership.directions)
    (place / "key.pem").write_bytes(member.key)
    (place / "cert.pem").write_bytes(member.chain)
    move_in(place, home)
    address = f"127.0.0.1:{edge.ports.server_port}"
    ca = edge.membership.authority.ca_pem
    client = Client(address, ca, member.key, member.chain, None)
    with Launcher(home.path, gpus=(), module="tests.reviver.stand_in") as launcher:
        running = Running(edge, home, client, job, terms, silos, launcher, threading.Event())
        yield running
        running.stopping.set()
        running.thread.join()
    client.close()


def test_tasks_are_worked_off_by_one_process_that_is_told_what_is_new(run: Running) -> None:
    run.publish(1.0, 2.0)
    run.begin()
    [first] = run.performed(1)
    assert (first.seed, first.device, list(first.libraries)) == (0, "cpu", ["torch"])
    assert first.effect is not None
    assert first.effect.agreement_after == canonical.hexfloat(0.75)
    run.publish(3.0)
    run.performed(2)
    one, two = run.told()
    assert [teacher["silo"] for teacher in one["teachers"]] == ["a", "b"]
    assert [teacher["silo"] for teacher in two["teachers"]] == ["a"]
    assert (one["pid"], one["version"], two["version"]) == (two["pid"], 2, 3)
    assert two["seconds"] > 0
    assert two["task_seconds"] >= 0
    run.until(lambda: len(run.told()) == 2, "nothing is done twice")


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("killed", "ProcessEnded"),
        ("memory", "MemoryError"),
        ("babbles", "NotAMessage"),
        ("another", "UnexpectedRevived"),
        ("nan", "NoResult"),
        ("link", "NoResult"),
        ("nothing", "NoResult"),
    ],
    indirect=["run"],
)
def test_a_process_that_fails_is_replaced(run: Running, why: str, monkeypatch: Any) -> None:
    """The task is skipped, and the next one taken by a process that is told everything anew."""
    monkeypatch.setattr(worker, "FAULT", 0.0)
    run.publish(1.0, 2.0)
    run.begin()
    assert run.skipped(1) == [("failed", why)]
    run.publish(3.0)
    run.performed(1)
    one, two = run.told()
    assert [teacher["silo"] for teacher in two["teachers"]] == ["a", "b"]
    assert one["pid"] != two["pid"]


CPU = Device("cpu", {"torch": "2.13.0"})
GPU = Device("cuda:0", {"torch": "2.13.0+cu130", "cuda": "13.0"}, "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize("run", ["killed", "memory"], indirect=True)
@pytest.mark.parametrize(("devices", "after"), [((GPU, CPU), CPU), ((GPU,), GPU)])
def test_a_job_that_a_gpu_fails_goes_on_where_it_may(
    run: Running, devices: tuple[Device, ...], after: Device, monkeypatch: Any
) -> None:
    """By the CPU, if the reviver may choose; on the GPU again, if it was told to. The log names what computed."""
    monkeypatch.setattr(worker, "FAULT", 0.0)
    run.devices = devices
    run.publish(1.0, 2.0)
    run.begin()
    run.skipped(1)
    run.publish(3.0)
    [performed] = run.performed(1)
    assert (performed.device, performed.libraries) == (str(after), after.libraries)
    assert [one["device"] for one in run.told()] == ["cuda:0", after.name]


@pytest.mark.parametrize("run", ["hangs"], indirect=True)
def test_a_process_that_hangs_is_ended_before_the_task_is_given_up(run: Running, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "FAULT", 0.0)
    monkeypatch.setattr(worker, "SHARE", 0.01)
    run.publish(1.0, 2.0)
    run.begin()
    assert run.skipped(1) == [("failed", "Hung")]
    monkeypatch.setattr(worker, "SHARE", 0.9)
    run.publish(3.0)
    assert run.performed(1)[0].version == 3


@dataclass
class Spy:
    client: Client
    rests: list[list[str]] = field(default_factory=list)

    def claim(self, holding: list[str], resting: list[str]) -> Any:
        self.rests.append(resting)
        return self.client.claim(holding, resting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.mark.parametrize("run", ["unsupported"], indirect=True)
def test_a_job_that_cannot_be_revived_is_left_alone(run: Running) -> None:
    run.publish(1.0, 2.0)
    spy = Spy(run.client)
    run.begin(spy)
    assert run.skipped(1) == [("unsupported", "no_inputs")]
    run.publish(3.0)
    asked = len(spy.rests)
    run.until(lambda: len(spy.rests) > asked + 1, "it goes on asking")
    assert spy.rests[-1] == [run.job]
    assert len(run.told()) == 1


def test_what_a_silo_taught_goes_with_the_process_when_it_takes_its_word_back(run: Running) -> None:
    run.publish(1.0, 2.0)
    run.begin()
    run.performed(1)
    [told] = run.told()
    allow(run.edge.server, run.silos[0], run.job, run.terms, False)
    run.until(lambda: not Path(f"/proc/{told['pid']}").exists(), "its process has ended")
    run.publish(3.0)
    run.performed(2)
    assert [teacher["silo"] for teacher in run.told()[1]["teachers"]] == ["b"]


@dataclass
class Breaking:
    """The first result breaks off in the middle, as when the server is killed."""

    client: Client
    broken: int = 0

    def submit(self, task: str, digest: str, report: bytes, chunks: Iterable[bytes]) -> Any:
        if self.broken == 0:
            self.broken += 1
            next(iter(chunks))
            raise Unavailable("the server was killed")
        return self.client.submit(task, digest, report, chunks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


def test_a_result_that_broke_off_is_sent_again_and_not_made_again(run: Running, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.01)
    run.publish(1.0, 2.0)
    breaking = Breaking(run.client)
    run.begin(breaking)
    run.performed(1)
    assert (breaking.broken, len(run.told())) == (1, 1)


def test_a_certificate_that_is_due_is_renewed(run: Running) -> None:
    before = identity.parse_chain((run.home.identity / "tls.pem").read_bytes())[0].serial_number
    (run.home.identity / "next.key").write_bytes(identity.private_pem(identity.new_tls_key()))  # cut short
    run.begin()

    def renewed() -> bool:
        leaf = identity.parse_chain((run.home.identity / "tls.pem").read_bytes())[0]
        return leaf.serial_number != before

    run.until(renewed, "renewed")
    run.publish(1.0, 2.0)
    run.performed(1)


def test_a_home_takes_over_a_bundle_once_and_again_when_it_is_newer(edge: Edge, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    member = edge.reviver()
    place = setup._request(tmp_path / "r", edge.membership.directions)
    with pytest.raises(Refused, match=r"is not what `anabranch-server reviver .* writes: .*cert.pem"):
        move_in(place, home)
    (place / "key.pem").write_bytes(member.key)
    (place / "cert.pem").write_bytes(member.chain)
    move_in(place, home)
    assert _identified(home).key == member.key
    admin = edge.admin()
    (place / "key.pem").write_bytes(admin.key)
    (place / "cert.pem").write_bytes(admin.chain)
    move_in(place, Home(tmp_path / "another"))
    with pytest.raises(Refused, match="is no reviver"):
        _identified(Home(tmp_path / "another"))
    edge.server.clock.advance(100.0)
    newer = edge.reviver()
    (place / "key.pem").write_bytes(newer.key)
    (place / "cert.pem").write_bytes(newer.chain)
    move_in(place, home)
    assert _identified(home).key == newer.key
    (place / "key.pem").write_bytes(member.key)
    (place / "cert.pem").write_bytes(member.chain)
    move_in(place, home)  # older: what was renewed here stays
    assert _identified(home).key == newer.key


@dataclass
class Source:
    """Sends what it was given, from the offset on."""

    data: bytes
    asked: list[int]

    def file(self, task: str, digest: str, offset: int) -> Iterator[bytes]:
        self.asked.append(offset)
        yield self.data[offset:]


def test_a_file_is_resumed_bounded_and_held_against_its_digest(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    data = b"0123456789"
    digest = canonical.sha256(data)
    source = Source(data, [])
    files = JobFiles(source, tmp_path)
    (tmp_path / "models" / f"{digest}.part").write_bytes(data[:4])
    assert files.fetch("t", digest, 10).read_bytes() == data
    assert files.fetch("t", digest, 10).read_bytes() == data
    assert source.asked == [4]
    other = "0" * 64
    for most, code in ((9, "size_limit"), (10, "digest_mismatch")):
        with pytest.raises(Refused) as refused:
            files.fetch("t", other, most)
        assert refused.value.code == code
    assert [path.name for path in (tmp_path / "models").iterdir()] == [digest]
    files.keep({other})
    assert not list((tmp_path / "models").iterdir())
