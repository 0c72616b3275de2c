"""What `job watch --mlflow` writes, read back from a real store of MLflow."""

import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from anabranch import exits
from anabranch.errors import Reason, Refused, Unavailable
from anabranch.v1 import admin_pb2
from console.mlflow import SETTINGS, MLflow
from console.scalars import Scalars
from console.tensorboard import EventFiles
from tests.console import test_scalars as tensorboard
from tests.console.test_cli import admin as admin
from tests.console.test_cli import run as typed
from tests.console.test_watch import look, status

FEDERATION = "demo.anabranch"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `MLflow` sets of the environment is of one test."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def watched(uri: str, *looks: admin_pb2.Overview | None) -> None:
    """By a watch of its own."""
    assert list(Scalars(MLflow(uri, FEDERATION)).written(looks)) == [*looks]


def now(head: int = 12, terms: str = "ab" * 32, **changes: Any) -> admin_pb2.JobStatus:
    return status(head=head, terms_sha256=terms, head_sha256=f"{head:064x}", **changes)


def runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(FEDERATION)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))


def history(uri: str, run: Any) -> list[tuple[str, int, float]]:
    """Tag, step, value."""
    client = MlflowClient(uri)
    found = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    return [(one.key, one.step, one.value) for each in found for one in each]


def test_a_job_is_a_run_with_the_scalars_that_tensorboard_has(uri: str, tmp_path: Path) -> None:
    looks = [look(now()), look(now()), None, look(now(head=13))]
    watched(uri, *looks)
    (run,) = runs(uri)
    assert run.info.run_name == "digits-0a1b2c3d"
    assert run.info.status == "RUNNING"
    assert run.data.tags["anabranch.job"] == "digits-0a1b2c3d"
    assert run.data.tags["anabranch.terms_sha256"] == "ab" * 32
    assert run.data.tags["anabranch.head"] == "13"
    assert run.data.tags["anabranch.head_sha256"] == f"{13:064x}"
    list(Scalars(EventFiles(tmp_path / "runs")).written(looks))
    there = tensorboard.read(tmp_path / "runs" / "digits-0a1b2c3d")
    with_32_bits = [
        (name, step, struct.unpack("f", struct.pack("f", v))[0]) for name, step, v in history(uri, run)
    ]
    assert sorted(with_32_bits) == sorted(there)


def test_a_watch_that_begins_again_goes_on_with_the_run_and_repeats_nothing(uri: str) -> None:
    watched(uri, look(now()))
    watched(uri, look(now(server_time=2_000, versions_per_hour=1.0)), look(now(head=13, server_time=2_001)))
    (run,) = runs(uri)
    found = history(uri, run)
    assert len(found) == len({(name, step) for name, step, _ in found})
    assert ("job/versions_per_hour", 12, 34.2) in found
    assert [step for name, step, _ in found if name == "updates/merged"] == [12, 13]


def test_a_job_that_ended_ends_its_run_and_another_has_another(uri: str) -> None:
    watched(uri, look(now(status="completed")))
    watched(uri, look(now(status="completed")), look(now(job="other-1", status="aborted")))
    watched(uri, look(now(terms="cd" * 32)))  # of another server, that calls itself the same
    assert [(run.info.run_name, run.info.status) for run in runs(uri)] == [
        ("digits-0a1b2c3d", "FINISHED"),
        ("other-1", "KILLED"),
        ("digits-0a1b2c3d", "RUNNING"),
    ]


def test_names_that_mlflow_does_not_take_are_written_as_it_does(uri: str) -> None:
    metrics = {"top@5": 0.5, "a/../b": 0.25, "a//c": 0.125}
    watched(uri, look(now(evaluations=[admin_pb2.Evaluation(version=10, metrics=metrics)])))
    found = history(uri, runs(uri)[0])
    assert {("top_5/mean", 10, 0.5), ("a/b/mean", 10, 0.25), ("a/c/mean", 10, 0.125)} <= set(found)


def test_a_server_that_is_not_there_is_said_and_nothing_waits_for_it(
    admin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = typed(monkeypatch, "job", "watch", "digits-1", "--admin", str(admin), "--mlflow", nobody)
    assert code == exits.UNAVAILABLE
    said = capsys.readouterr().err
    assert f"MLflow at {nobody}" in said
    assert "Connection refused" in said


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person sets holds: here one second, and no second try."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(Unavailable, match="timed out"):
            MLflow(f"http://127.0.0.1:{silent.getsockname()[1]}", FEDERATION)


def test_what_mlflow_does_not_take_is_refused(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "runs"), "gopher://mlflow.example"):
        with pytest.raises(Refused, match="MLflow at "):
            MLflow(uri, FEDERATION)
    with pytest.raises(Refused, match="MLFLOW_TRACKING_PASSWORD") as refused:
        MLflow("https://me:secret@mlflow.example", FEDERATION)
    assert "secret" not in str(refused.value)


def test_without_mlflow_the_error_says_what_to_install(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one == "mlflow" or one.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Refused, match=r"pip install 'anabranch\[mlflow\]'") as refused:
        MLflow(uri, FEDERATION)
    assert refused.value.code is Reason.NOT_FOUND
