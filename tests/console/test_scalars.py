"""What `job watch --tensorboard` writes, read back from its event files."""

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from anabranch.errors import Reason, Refused
from anabranch.v1 import admin_pb2
from console.scalars import Scalars
from console.tensorboard import EventFiles
from tests.console.test_speeds import at_work
from tests.console.test_watch import look, status


def read(run: Path) -> list[tuple[str, int, float]]:
    """Tag, step, value. A record: length, its checksum, data, its checksum."""
    found = []
    for path in sorted(run.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += length + 16
    return found


def scores(version: int, **silos: float) -> list[admin_pb2.Evaluation]:
    return [admin_pb2.Evaluation(version=version, silo=s, metrics={"accuracy": v}) for s, v in silos.items()]


def test_each_version_is_written_once_and_each_score_as_it_comes(tmp_path: Path) -> None:
    first, second = at_work(), status(head=13)
    more = status(
        head=13,
        evaluations=[admin_pb2.Evaluation(version=13, metrics={"accuracy": 0.5}), *scores(13, aare=0.5)],
    )
    looks: list[Any] = [look(first), look(first), None, look(second), look(more), look(more)]
    assert list(Scalars(EventFiles(tmp_path)).written(looks)) == looks
    found = read(tmp_path / first.job)
    assert len(found) == len(set(found))
    assert ("updates/merged", 12, 8.0) in found
    assert ("job/staleness", 13, 1.25) in found
    assert ("updates/whole_bytes", 12, 2_770_000.0) in found
    assert [(step, value) for tag, step, value in found if tag == "accuracy/mean"] == [(10, 0.875), (13, 0.5)]
    assert [(step, value) for tag, step, value in found if tag == "samples_per_second/aare"] == [
        (12, 1234.5),
        (13, 1234.5),  # it does not train now
    ]


def test_each_job_is_a_run_and_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    list(Scalars(EventFiles(folder)).written([look(status(), status(job="other-1"))]))
    assert sorted(path.name for path in folder.iterdir()) == ["digits-0a1b2c3d", "other-1"]
    for job in ("../out", "..", "a/b", ""):
        with pytest.raises(Refused) as refused:
            list(Scalars(EventFiles(folder)).written([look(status(job=job))]))
        assert refused.value.code is Reason.MALFORMED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_without_tensorboardx_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Refused, match=r"pip install 'anabranch\[tensorboard\]'"):
        EventFiles(tmp_path)
