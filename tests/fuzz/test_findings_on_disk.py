"""The rest of what fuzzing has found: in files of our own that were damaged, in an export, at a console."""

import math
from pathlib import Path

import pytest

from anabranch.errors import Corrupt, Reason, Refused
from anabranch.v1 import admin_pb2
from anabranch.wire import statements
from auditor.export import Export
from auditor.objects import Named, check
from auditor.parsing import parse_update
from auditor.pin import pin
from auditor.receipts import read_receipts
from auditor.report import Report
from console import board, silos
from console.client import presentable
from server.audit.register import CheckpointRegister
from silo_agent import approval, outbox
from tests.fuzz import silo
from tests.fuzz.findings import DEEP, refused
from tests.fuzz.readers import shown

# --- files of our own, damaged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b'{"decision":[]}', b'{"decision":{}}', b'{"decision":' + DEEP + b"}"])
def test_a_damaged_decision(tmp_path: Path, data: bytes) -> None:
    """A list cannot be looked up in a dict: TypeError; nesting: RecursionError."""
    (tmp_path / f"{'a' * 64}.json").write_bytes(data)
    with pytest.raises(Corrupt):
        approval.Decisions(tmp_path).of("a" * 64)
    assert approval.Decisions(tmp_path).known("digits-1") is None


def test_a_damaged_log_view() -> None:
    view = silo.view()
    view.path.write_bytes(b'{"checkpoint":' + DEEP + b"}")
    try:
        with pytest.raises(Corrupt):
            view.current()
    finally:
        view.path.unlink()


@pytest.mark.parametrize("text", ["-5\n", "9" * 40, "1_0", "²"])
def test_a_damaged_sequence(tmp_path: Path, text: str) -> None:
    """A negative or endless number could be counted on, and no statement be signed with it."""
    (tmp_path / "sequence").write_text(text)
    with pytest.raises(Corrupt):
        outbox.next_sequence(tmp_path)


def test_a_damaged_checkpoint_register(tmp_path: Path) -> None:
    (tmp_path / "register").write_bytes(b"\xff\xfe")
    with pytest.raises(Corrupt):
        CheckpointRegister(tmp_path / "register").read()


# --- an export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        DEEP,
        b'{"entry":"","index":1e999,"proof":[],"checkpoint":""}',
        b'{"entry":"","index":1.5,"proof":[],"checkpoint":""}',
    ],
    ids=["deep", "infinite", "half"],
)
def test_receipts_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "receipts.json").write_bytes(data)
    assert refused(list, read_receipts([tmp_path / "receipts.json"])) is Reason.MALFORMED


def test_a_key_file_that_nests_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "vkey").write_bytes(b'{"log_vkey":' + DEEP + b"}")
    assert refused(pin, Export(tmp_path), str(tmp_path / "vkey")) is Reason.MALFORMED


def test_what_is_said_of_a_deep_statement_depends_on_no_stack() -> None:
    payload = b'{"subject":' + b"[" * 2000
    said = set()
    for read in (parse_update, statements.parse_update):
        with pytest.raises(Refused) as caught:
            read(payload)
        said.add(str(caught.value))
    assert len(said) == 1
    assert "deeper" in said.pop()


def test_sealed_facts_that_nest_too_deeply(tmp_path: Path) -> None:
    """64 kB in `sealed/` ended the verification of a log without a verdict."""
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / f"{'a' * 64}.json").write_bytes(b'{"fields":' + DEEP + b"}")
    report = Report("")
    check(Export(tmp_path), Named(), {}, report, lambda *_: None)
    assert [finding.step for finding in report.findings] == [6]


# --- a console -------------------------------------------------------------------------------------------------------


def test_a_certificate_that_ends_beyond_the_calendar() -> None:
    shown(silos.table([admin_pb2.Silo(name="north", certificate_not_after=2**63 - 1)]))


def test_names_from_a_server_are_no_markup() -> None:
    """A name with a closing tag raised MarkupError; one with an escape sequence reached the terminal."""
    status = presentable(
        admin_pb2.JobStatus(job="[/red]", name="\x1b[31m", silos=[admin_pb2.SiloStatus(silo="\x1b")])
    )
    shown(board.jobs_table([status]))
    shown(board.board(admin_pb2.Overview(jobs=[status]), every_silo=True))
    assert board.line(status).isprintable()


@pytest.mark.parametrize("left", [math.inf, -math.inf, math.nan])
def test_a_time_left_that_is_no_number(left: float) -> None:
    status = admin_pb2.JobStatus(job="digits-1", status="running", eta_seconds=left)
    shown(board.board(admin_pb2.Overview(jobs=[status]), every_silo=True))
