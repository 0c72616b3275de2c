"""A job's code that wants out of its folder. The server keeps it as bytes it never opens; at the silo nothing is written."""

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from anabranch.errors import Refused
from silo_agent.client import Client
from silo_agent.worker import install_archive
from tests.e2e.federation import Federation
from tests.hostility.target import MIB, Target, extra_memory, submission
from tests.training.test_archive import HOSTILE, build, plain


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("task.py", bytes(64 * MIB))
    return file.getvalue()


ARCHIVES = {
    **{name: data for name, data in HOSTILE.items() if data},
    "gzip bomb": gzip.compress(bytes(256 * MIB), 1),
    "zip bomb": zip_bomb(),
    "a declared terabyte": build(plain("a.py"))[:124] + b"77777777777\0" + bytes(1400),
    "thirty thousand files": build(*(plain(f"{number:05}.py", b"") for number in range(30_000))),
    "right-to-left override": build(plain("a\u202egpj.py".encode().decode("latin-1"))),
    "a NUL in the name": build(plain("task.py\0.txt")),
    "a drive letter": build(plain("C:evil.py")),
    "backslashes": build(plain("..\\evil.py")),
    "a tilde": build(plain("~/evil.py")),
    "a trailing dot folder": build(plain("a/./evil.py")),
    "a socket": build(plain("a.py", b"", type=b"s")),
    "sparse": build(plain("a.py", b"", type=b"S")),
    "a long name of GNU": build(plain("a.py", b"x" * 600, type=b"L")),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_nothing_of_it_is_written_at_the_silo(target: Target, what: str, tmp_path: Path) -> None:
    """The owner names the archive's true digest, as a malicious owner would."""
    data = ARCHIVES[what]
    before = sorted(path.name for path in (target.federation.server_dir).rglob("*") if path.suffix == ".py")
    with extra_memory(target.pid) as memory:
        job, terms = target.submit(data)
    assert memory.extra <= 64 * MIB
    who = target.silos["honest"]
    client = Client(target.address(), target.ca, who.key, who.chain, None)
    try:
        with pytest.raises(Refused) as refused:
            install_archive(client, job, terms, tmp_path / "jobs" / "archive")
    finally:
        client.close()
    assert refused.value.code in ("malformed", "size_limit")
    assert not list(tmp_path.rglob("*.py"))
    assert not (tmp_path / "jobs" / "archive").exists()
    assert before == sorted(
        path.name for path in target.federation.server_dir.rglob("*") if path.suffix == ".py"
    )


def test_an_archive_of_more_than_its_bound_is_not_taken(target: Target) -> None:
    assert target.terms is not None
    with extra_memory(target.pid) as memory, pytest.raises(Refused, match="archive"):
        target.send(submission(target.terms, b"[]", bytes(17 * MIB), b"x"))
    assert memory.extra <= 64 * MIB


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_person_who_approves_it_is_told_and_the_agent_lives(tmp_path: Path) -> None:
    """The command refuses with a code; an agent whose policy approves by digest says why, and works on other jobs."""
    target = Target(Federation(tmp_path)).create()
    try:
        target.federation.enrol("hospital-a")
        job, _ = target.submit(HOSTILE["traversal"])
        done = target.federation.call(
            "anabranch-silo",
            "approve",
            job,
            "--yes",
            "--dir",
            target.federation.silo_dir("hospital-a"),
            expect=1,
        )
        assert done["error"]["code"] == "malformed"
        target.federation.agent("hospital-a")
        good = target.federation.submit(versions=2)
        target.federation.approve("hospital-a", good)
        assert target.federation.finish(good)["head"] == 2
    finally:
        target.close()
