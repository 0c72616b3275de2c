"""Runs in MLflow: an experiment for the federation, in it a run for each job, found again by its tags."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anabranch.errors import Reason, Refused, Unavailable, wording
from anabranch.v1 import admin_pb2
from console.scalars import Point, Points

MISSING = "--mlflow needs mlflow, which is not installed here: pip install 'anabranch[mlflow]'"
SETTINGS = {
    # MLflow's own are 120 seconds and 7 retries: that a server is not there would be said after minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # what is printed there is ours, JSON perhaps
}
UNSAID = re.compile(r"[^A-Za-z0-9_./-]")  # in a scalar's name; MLflow takes no other
PASSWORD = re.compile(r"[^/]*//[^/@:]*:[^@]+@")
ENDED = {"completed": "FINISHED", "aborted": "KILLED"}
DENIED = (401, 403)
STATED = 400  # characters of what MLflow says


class MLflow:
    """Writes at once; nothing is kept for later. What a person set in MLflow's environment variables holds."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Raises Refused for a URI that MLflow does not take, Unavailable when nobody answers there.

        Refused(NOT_FOUND) where mlflow is not installed.
        """
        if PASSWORD.match(uri):
            raise Refused(
                Reason.MALFORMED,
                "--mlflow has a password in it, which everybody on this machine can read: put it into "
                "MLFLOW_TRACKING_PASSWORD, or into ~/.mlflow/credentials",
            )
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise Refused(Reason.NOT_FOUND, MISSING) from None
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table it makes
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._uri = uri
        self._runs: dict[str, Any] = {}  # job → the run as it was found or made
        with self._answering():
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = (
                found.experiment_id if found is not None else self._client.create_experiment(experiment)
            )

    def newest(self, status: admin_pb2.JobStatus) -> Points:
        with self._answering():
            run = self._runs[status.job] = self._found(status) or self._made(status)
            histories = [self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        latest = [max(history, key=lambda m: (m.step, m.timestamp)) for history in histories]
        return {metric.key: Point(metric.step, metric.value) for metric in latest}

    def write(self, status: admin_pb2.JobStatus, points: Points) -> None:
        from mlflow.entities import Metric, RunTag

        run, at = self._runs[status.job], status.server_time * 1000
        with self._answering():
            if points:
                self._client.log_batch(
                    run.info.run_id,
                    [Metric(_name(name), value, at, version) for name, (version, value) in points.items()],
                    tags=[RunTag(name, value) for name, value in _of_head(status).items()],
                )
            if status.status in ENDED and run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, ENDED[status.status], at)

    def close(self) -> None:
        """A run whose job goes on stays open: the next watch goes on with it."""

    def _found(self, status: admin_pb2.JobStatus) -> Any:
        asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in _of_job(status).items())
        return next(iter(self._client.search_runs([self._experiment], asked, max_results=1)), None)

    def _made(self, status: admin_pb2.JobStatus) -> Any:
        tags = _of_job(status) | _of_head(status)
        return self._client.create_run(self._experiment, tags=tags, run_name=status.job)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """MLflow's error as one of ours: a request it refuses, or nobody who answers it."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            said = f"MLflow at {self._uri}: {_plain(error)}"
            code = error.get_http_status_code()
            if code in DENIED:
                raise Refused(
                    Reason.WRONG_ROLE, f"{said}; see MLFLOW_TRACKING_USERNAME and the like"
                ) from error
            if code < 500:
                raise Refused(Reason.MALFORMED, said) from error
            raise Unavailable(f"{said}; the same command goes on with the same run") from error


def _name(name: str) -> str:
    """As MLflow takes it: `top@5/mean` is `top_5/mean`, and no part leads elsewhere."""
    return "/".join(part for part in UNSAID.sub("_", name).split("/") if part.strip("."))


def _of_job(status: admin_pb2.JobStatus) -> dict[str, str]:
    return {"anabranch.job": status.job, "anabranch.terms_sha256": status.terms_sha256}


def _of_head(status: admin_pb2.JobStatus) -> dict[str, str]:
    return {"anabranch.head": str(status.head), "anabranch.head_sha256": status.head_sha256}


def _plain(error: Exception) -> str:
    """The first line, cut."""
    return wording(error).split("\n", 1)[0][:STATED]
