import io
import json

import pytest
from rich.console import Console

from anabranch.v1 import admin_pb2
from console import board, client, documents, silos, watch, words


def tally(outcome: str, reason: str, count: int) -> admin_pb2.Tally:
    return admin_pb2.Tally(outcome=outcome, reason=reason, count=count)


def status(**changes) -> admin_pb2.JobStatus:
    fields = {
        "job": "digits-0a1b2c3d", "name": "digits", "status": "running", "head": 12, "versions": 80, "best": 10,
        "buffered": 1, "buffer": 2, "buffer_age_seconds": 3.4, "server_time": 1_000,
        "versions_per_hour": 34.2, "updates_per_minute": 1.25, "eta_seconds": 7_300.0,
        "silos": [
            admin_pb2.SiloStatus(silo="aare", decision="approved", state="training", connected=True, last_seen=999,
                                 base=12, training=True, step=7, steps=20, received=1, merged=8, mean_staleness=1.25,
                                 lease="11" * 16, bytes=171_000),
            admin_pb2.SiloStatus(silo="tagus", decision="approved", state="training", connected=True, last_seen=998,
                                 base=9, training=True, lease="2f" * 16, step=3, steps=20, leased_seconds=725,
                                 late_seconds=125),
            admin_pb2.SiloStatus(silo="elbe", decision="approved", state="lost", last_seen=900, refused=2, base=11,
                                 lease="33" * 16, tallies=[tally("refused", "nonfinite", 2)],
                                 last_reason="nonfinite"),
            admin_pb2.SiloStatus(silo="oder", state="undecided", connected=True, last_seen=999),
            admin_pb2.SiloStatus(silo="ebro", decision="denied", state="denied", connected=True, last_seen=999),
            admin_pb2.SiloStatus(silo="drava", decision="approved", state="backing off", connected=True, failures=4,
                                 retry_seconds=10, last_seen=999, tallies=[tally("released", "task_failed", 4)],
                                 last_reason="task_failed: ValueError at task.py:31"),
        ],
        "evaluations": [
            admin_pb2.Evaluation(version=10, silo="", split="validation", metrics={"accuracy": 0.875}),
            admin_pb2.Evaluation(version=10, silo="aare", split="validation", metrics={"accuracy": 0.91}),
        ],
    }  # fmt: skip
    return admin_pb2.JobStatus(**{**fields, **changes})


SERVER = admin_pb2.ServerStatus(
    release="0.1.0", memory_bytes=213_000_000, memory_peak_bytes=240_000_000, disk_free_bytes=120 * 10**9,
    disk_bytes=500 * 10**9, received_per_second=1.2e6, sent_per_second=3.4e6, sessions=5,
)  # fmt: skip


def look(*statuses: admin_pb2.JobStatus) -> admin_pb2.Overview:
    return admin_pb2.Overview(jobs=statuses, server=SERVER, server_time=1_000)


def shown(renderable, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return console.export_text()


def test_what_revival_comes_to_is_told_of_jobs_that_have_it():
    revival = admin_pb2.RevivalStatus(
        teachers=["aare", "elbe"], tallies=[tally("used", "", 12), tally("skipped", "warmup", 3)], version=20,
        agreement_before=0.61, agreement_after=0.66, accuracy_before=0.5, accuracy_after=0.625, seconds=3.2,
    )  # fmt: skip
    said = shown(board.board(look(status(revival=revival)), every_silo=True), 160)
    assert (
        "revival used 12, skipped 3× warmup  taught by 2 silos  "
        "agreement 61.0% → 66.0%, public accuracy 50.0% → 62.5% at version 20, in 3 s" in said
    )
    assert "revival" not in shown(board.board(look(status()), every_silo=True))
    assert documents.job(status())["revival"] is None
    told = documents.job(status(revival=revival))["revival"]
    assert told["teachers"] == ["aare", "elbe"]
    assert told["tallies"][1] == {"outcome": "skipped", "reason": "warmup", "count": 3}
    hostile = client.presentable(look(status(revival=admin_pb2.RevivalStatus(teachers=["a\x1b[2J"]))))
    assert "\x1b" not in json.dumps(documents.snapshot(hostile), ensure_ascii=False)


@pytest.mark.parametrize("width", [80, 120])
def test_the_board_says_who_does_what_and_why_not(width: int) -> None:
    text = shown(board.board(look(status()), every_silo=True), width)
    rows = {line.split()[0]: line for line in text.splitlines() if "●" in line}
    assert "7/20" in rows["aare"]
    assert "91.0%" in rows["aare"]
    assert "171.0 kB" in rows["aare"]
    assert "late" in rows["tagus"]
    assert "lost 1 min" in rows["elbe"]
    assert "undecided" in rows["oder"]
    assert "denied" in rows["ebro"]
    assert "backing off 10 s" in rows["drava"]
    assert "tagus: late by 2 min: lease 2f2f2f2f from version 9, held for 12 min" in text
    assert "elbe: lost: holds a lease, and was not heard for 1 min" in text
    assert "elbe: refused 2× nonfinite" in text
    assert "drava: 4 tasks failed in a row; next one in 10 s" in text
    assert "drava: failed 4× task_failed" in text
    assert "drava: last failure: task_failed: ValueError at task.py:31" in text
    assert "version 12 of 80  done in 2 h at most" in text
    assert "buffer 1/2 for 3 s  34/h versions, 1.2/min updates  staleness 1.2" in text
    assert "accuracy 87.5% at version 10" in text
    assert "memory 213.0 MB, peak 240.0 MB  disk 120.0 GB of 500.0 GB free" in text
    assert "in 1.2 MB/s, out 3.4 MB/s  5 agents" in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_several_jobs_are_counted_and_their_troubles_named() -> None:
    other = status(job="lungs-99999999", name="lungs", silos=[], evaluations=[], status="waiting")
    text = shown(board.board(look(status(), other), every_silo=False))
    assert "2 training" in text
    assert "1 backing off" in text
    assert "tagus: late by 2 min" in text
    assert "lungs-99999999" in text
    assert "no silo has joined" in text
    assert "●" not in text
    assert "no job goes on" in shown(board.board(look(), every_silo=False))


def test_what_comes_from_silos_cannot_paint_the_terminal() -> None:
    hostile = admin_pb2.SiloStatus(silo="x", state="idle", last_reason="[red]task: \x1b[31m")
    text = shown(board.board(look(status(silos=[hostile])), every_silo=True))
    assert "\x1b" not in text
    assert "[red]task" in text


def test_a_line_fits_a_log() -> None:
    line = board.line(status())
    assert "\n" not in line
    assert "version 12/80" in line
    assert "accuracy 0.875 (version 10)" in line
    assert "done in 2 h" in line


def test_the_documents_are_complete() -> None:
    document = json.loads(json.dumps(documents.snapshot(look(status()))))
    assert set(document) == {field.name for field in admin_pb2.Overview.DESCRIPTOR.fields}
    assert set(document["server"]) == {field.name for field in admin_pb2.ServerStatus.DESCRIPTOR.fields}
    [job] = document["jobs"]
    assert set(job) == {field.name for field in admin_pb2.JobStatus.DESCRIPTOR.fields}
    assert set(job["silos"][0]) == {field.name for field in admin_pb2.SiloStatus.DESCRIPTOR.fields}
    assert job["silos"][5]["tallies"] == [{"outcome": "released", "reason": "task_failed", "count": 4}]


def test_every_status_renders() -> None:
    ended = status(status="aborted", reason="operator", silos=[], evaluations=[], buffered=0, buffer=0)
    assert "aborted" in shown(board.board(look(ended), every_silo=True))
    assert "aborted (operator)" in board.line(ended)
    assert "no jobs yet" in shown(board.jobs_table([]))
    assert "12/80" in shown(board.jobs_table([status()]))


def test_following_says_each_version_and_each_trouble_once(capsys) -> None:
    states = [status(), status(), status(head=13), status(head=13, status="completed"), status(head=99)]
    ended = watch.follow(map(look, states), "lines", every_silo=True)
    lines = capsys.readouterr().out.splitlines()
    assert ended == ["completed"]
    assert [line.split()[3] for line in lines if "version 1" in line and "merged" in line] == [
        "12/80", "13/80", "13/80",
    ]  # fmt: skip
    assert sum("tagus: late" in line for line in lines) == 1


def test_json_is_one_document_per_line(capsys) -> None:
    looks = [look(status()), None, look(status(head=13, status="aborted"))]
    assert watch.follow(looks, "json", every_silo=True) == ["aborted"]
    told = capsys.readouterr()
    assert [json.loads(line)["jobs"][0]["head"] for line in told.out.splitlines()] == [12, 13]
    assert watch.AWAY in told.err


def test_watching_several_ends_when_none_goes_on() -> None:
    first, second = status(job="a", status="completed"), status(job="b")
    looks = [
        look(status(job="a"), second),
        look(first, second),
        look(first, status(job="b", status="aborted")),
    ]
    assert watch.follow([*looks, look(status())], "json", every_silo=False) == ["completed", "aborted"]


def test_a_server_that_goes_away_is_said_once(capsys) -> None:
    looks = [
        look(status()),
        None,
        None,
        look(status(head=13)),
        None,
        look(status(head=13, status="completed")),
    ]
    assert watch.follow(looks, "lines", every_silo=True) == ["completed"]
    assert capsys.readouterr().err.splitlines() == [watch.AWAY, watch.AWAY]


def test_a_screen_shows_the_last_state_and_that_the_server_is_away(capsys) -> None:
    looks = [look(status()), None, look(status(head=80, status="completed"))]
    assert watch.follow(looks, "screen", every_silo=True) == ["completed"]
    assert "version 80 of 80" in capsys.readouterr().out


def test_several_scores_have_one_order_and_fit() -> None:
    metrics = {"loss": 0.25, "accuracy": 0.875}
    evaluations = [
        admin_pb2.Evaluation(version=10, silo=silo, split="validation", metrics=metrics)
        for silo in ("", "aare")
    ]
    text = shown(board.board(look(status(evaluations=evaluations)), every_silo=True))
    assert "accuracy 87.5%, loss 0.25 at version 10" in text
    assert "…" not in text


def test_silos_are_listed() -> None:
    silo = admin_pb2.Silo(
        name="aare", status="active", certificate_not_after=1, connected=True, release="0.1.0"
    )
    text = shown(silos.table([silo]))
    assert "1970-01-01" in text
    assert "active" in text
    assert "invite" in shown(silos.table([]))
    assert {field.name for field in admin_pb2.Silo.DESCRIPTOR.fields} - {"name"} <= set(silos.document(silo))


def test_numbers_for_people() -> None:
    assert [words.size(n) for n in (0, 999, 1000, 19_520, 3_000_000, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "19.5 kB", "3.0 MB", "5000.0 GB",
    ]  # fmt: skip
    assert [words.span(n) for n in (-1, 0.4, 59.9, 60, 7_200, 200_000)] == [
        "0 s", "0 s", "59 s", "1 min", "2 h", "2 d",
    ]  # fmt: skip
    assert [words.rate(n) for n in (0, 0.1, 2.5, 34.2)] == ["0/h", "2.4/d", "2.5/h", "34/h"]
