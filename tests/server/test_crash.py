"""The server killed between any two durable steps: one test per gap, and the order of the steps themselves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.terms import parse_terms
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import verify_receipt
from server.audit.export import export
from server.blobs.local import BlobStore
from server.gaps import Gap
from server.state import records, tables
from server.state.database import open_reader
from tests.server.harness import ORIGIN, Server, fake_silo

ROOT = Path(__file__).parents[2]
EVERY_GAP = [  # SPOOLED: test_intake.py; the others: test_killed_while_pruning, test_revivals.py
    gap for gap in Gap if gap is not Gap.SPOOLED and not gap.startswith(("retention.", "revive."))
]


def drive(directory: Path, gap: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", "tests.server.crash_driver", str(directory), gap]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of version 1 when nothing goes wrong."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    done = drive(directory, "none")
    assert done.stdout.endswith("published\n"), done.stderr
    server = Server(directory)
    with server.core.reader.connect() as connection:
        digest = connection.execute(select(tables.versions.c.parameters).where(tables.versions.c.number == 1))
        found = str(digest.scalar_one())
    server.core.close()
    return found


@pytest.mark.parametrize("gap", EVERY_GAP)
def test_killed_at(gap: Gap, tmp_path: Path, uninterrupted: str) -> None:
    """What was acknowledged is there, what was not is sent again, and the version has the same digest."""
    died = drive(tmp_path, gap)
    assert died.returncode == -9, died.stderr
    acknowledged = re.findall(r"acknowledged (\w) (\d+)", died.stdout)

    server = Server(tmp_path)
    with server.core.reader.connect() as connection:
        [job] = connection.execute(select(tables.jobs)).all()
        known = {row.silo: row for row in connection.execute(select(tables.updates))}
    for silo, entry in acknowledged:
        assert known[silo].entry == int(entry)
    for name, value in (("a", 1.0), ("b", 2.0)):
        resume(server, job.id, name, value)
    if job.head == 0:
        assert server.core.aggregation.advance(job.id)
    with server.core.reader.connect() as connection:
        assert records.job_row(connection, job.id).head == 1
        assert records.version_row(connection, job.id, 1).parameters == uninterrupted
        updates = connection.execute(select(tables.updates)).all()
    assert [(row.status, row.version) for row in updates] == [("merged", 1)] * 2
    server.core.close()


@pytest.mark.parametrize("gap", [gap for gap in Gap if gap.startswith("retention.")])
def test_killed_while_pruning(gap: Gap, tmp_path: Path) -> None:
    """The log says what is pruned; the next start removes exactly that, and an export explains everything it lacks."""
    died = drive(tmp_path, gap)
    assert died.returncode == -9, died.stderr
    with open_reader(tmp_path / "state" / "state.db").connect() as connection:
        marked = select(tables.named.c.digest).where(tables.named.c.pruned.is_not(None))
        pruned = set(connection.execute(marked).scalars())
    blobs = BlobStore(tmp_path / "blobs")
    assert len(pruned) == 3  # two deltas and version 0
    assert any(map(blobs.holds, pruned)) == (gap != Gap.RETENTION_REMOVING)

    server = Server(tmp_path)
    assert not any(map(blobs.holds, pruned))
    assert not blobs.spooled()
    done = export(server.core.reader, blobs, server.signer.vkey, b"", tmp_path / "export", False)
    assert (done.pruned, done.missing) == (3, 0)
    with server.core.reader.connect() as connection:
        [job] = connection.execute(select(tables.jobs)).all()
        head = records.version_row(connection, job.id, 1)
    assert all(map(blobs.holds, (head.parameters, head.optimizer, head.ema)))
    server.core.retention.prune()  # nothing is left to do
    with server.core.reader.connect() as connection:
        assert records.count(connection, tables.named, tables.named.c.pruned.is_not(None)) == 3
    server.core.close()


def resume(server: Server, job: str, name: str, value: float) -> None:
    """What an agent does after the server came back: same update id, same bytes; the first receipt is proven again."""
    silo = fake_silo(name)
    with server.core.reader.connect() as connection:
        mine = tables.updates.c.silo == name
        update = connection.execute(select(tables.updates.c.id).where(mine)).scalar()
        terms = parse_terms(records.job_row(connection, job).terms)
    if update is None:
        decided = server.send(silo, job, terms, value)
    else:
        status = server.core.intake.status(name, update)
        assert status.decided is not None
        decided = status.decided
    assert decided.reason == ""
    entry, _ = verify_receipt(decided.receipt, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)
    assert entry.type == "update.received"


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: the order of syscalls is not traced"
)
def test_no_commit_precedes_the_sync_of_the_blob_it_names(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,pwrite64"
    done = drive(
        tmp_path / "server", "none", "strace", "-f", "-y", "-s", "9000", "-e", calls, "-o", str(trace)
    )
    assert done.stdout.endswith("published\n"), done.stderr
    lines = trace.read_text(errors="replace").splitlines()
    renames = [
        (number, *found.groups())
        for number, line in enumerate(lines)
        if (found := re.search(r'rename\("([^"]*/spool/[^"]*)", "([^"]*/([0-9a-f]{64}))"', line))
    ]
    named = 0
    for number, spooled, blob, digest in renames:
        commits = [
            i for i, line in enumerate(lines) if "-wal>" in line and "pwrite64" in line and digest in line
        ]
        if not commits:
            continue  # signed payloads and archives: named by the digest of something else
        named += 1
        before, after = lines[:number], lines[number : commits[0]]
        assert any("sync(" in line and f"<{spooled}>" in line for line in before), f"{spooled} was not synced"
        directory = str(Path(blob).parent)
        assert any("sync(" in line and f"<{directory}>" in line for line in after), (
            f"{directory} was not synced"
        )
    assert named >= 4  # two deltas, the initial model, the published version
