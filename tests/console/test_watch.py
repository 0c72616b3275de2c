import io
import json

from rich.console import Console

from anabranch.v1 import admin_pb2
from console import silos, watch


def status(**changes) -> admin_pb2.JobStatus:
    fields = {
        "job": "job-1", "name": "digits", "status": "running", "head": 12, "versions": 80, "best": 10,
        "buffered": 1, "buffer": 2, "buffer_age_seconds": 3.4, "server_time": 1_000,
        "silos": [
            admin_pb2.SiloStatus(silo="aare", decision="approved", connected=True, last_seen=999, base=12,
                                 training=True, step=7, steps=20, received=9, merged=8, mean_staleness=1.25,
                                 bytes=171_000),
            admin_pb2.SiloStatus(silo="tagus", decision="approved", connected=True, last_seen=970, received=1),
            admin_pb2.SiloStatus(silo="elbe", decision="approved", last_seen=900, refused=2,
                                 last_reason="nonfinite"),
            admin_pb2.SiloStatus(silo="oder", connected=True, last_seen=999),
            admin_pb2.SiloStatus(silo="ebro", decision="denied", connected=True, last_seen=999),
        ],
        "evaluations": [
            admin_pb2.Evaluation(version=10, silo="", split="validation", metrics={"accuracy": 0.875}),
            admin_pb2.Evaluation(version=10, silo="aare", split="validation", metrics={"accuracy": 0.91}),
        ],
    }  # fmt: skip
    return admin_pb2.JobStatus(**{**fields, **changes})


def shown(renderable) -> str:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(renderable)
    return console.export_text()


def test_the_view_says_who_does_what_and_why_not() -> None:
    text = shown(watch.view(status()))
    rows = {line.split()[0]: line for line in text.splitlines() if "●" in line}
    assert "7/20" in rows["aare"]
    assert "91.0%" in rows["aare"]
    assert "171.0 kB" in rows["aare"]
    assert "late" in rows["tagus"]
    assert "lost 1 min" in rows["elbe"]
    assert "undecided" in rows["oder"]
    assert "denied" in rows["ebro"]
    assert "elbe: last refused or given up: nonfinite" in text
    assert "version 12 of 80" in text
    assert "accuracy 87.5% at version 10" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_line_fits_a_log() -> None:
    line = watch.line(status())
    assert "\n" not in line
    assert "version 12/80" in line
    assert "accuracy 0.875 (version 10)" in line


def test_the_document_is_complete_json() -> None:
    document = json.loads(json.dumps(watch.document(status())))
    fields = {field.name for field in admin_pb2.JobStatus.DESCRIPTOR.fields}
    assert fields <= set(document)
    assert {field.name for field in admin_pb2.SiloStatus.DESCRIPTOR.fields} <= set(document["silos"][0])


def test_every_status_renders(capsys) -> None:
    ended = status(status="aborted", reason="operator", silos=[], evaluations=[], buffered=0, buffer=0)
    assert "aborted" in shown(watch.view(ended))
    assert "aborted (operator)" in watch.line(ended)
    assert "no jobs yet" in shown(watch.jobs_table([]))
    assert "12/80" in shown(watch.jobs_table([status()]))


def test_following_ends_with_the_job_and_says_each_version_once(capsys) -> None:
    stream = iter([status(), status(), status(head=13), status(head=13, status="completed"), status(head=99)])
    last = watch.follow(stream, once=False, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert last is not None
    assert last.status == "completed"
    assert [line.split()[2] for line in lines] == ["12/80", "13/80", "13/80"]


def test_a_server_that_goes_away_is_said_once(capsys) -> None:
    stream = iter([status(), None, None, status(head=13), None, status(head=13, status="completed")])
    assert watch.follow(stream, once=False, as_json=False) is not None
    said = capsys.readouterr().out.splitlines()
    assert [line == watch.AWAY for line in said] == [False, True, False, True, False]


def test_several_scores_have_one_order_and_fit() -> None:
    metrics = {"loss": 0.25, "accuracy": 0.875}
    evaluations = [
        admin_pb2.Evaluation(version=10, silo=silo, split="validation", metrics=metrics)
        for silo in ("", "aare")
    ]
    text = shown(watch.view(status(evaluations=evaluations)))
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


def test_sizes_for_people() -> None:
    assert [watch.size(n) for n in (0, 999, 1000, 19_520, 3_000_000, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "19.5 kB", "3.0 MB", "5000.0 GB",
    ]  # fmt: skip
