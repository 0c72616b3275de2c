"""Tiers and schedules in virtual time: with a reviver, and with a server that is not strict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anabranch.link import Packing
from anabranch.wire.manifest import Manifest
from auditor.export import Export
from auditor.pin import pin
from auditor.replay import Replay, replay
from auditor.verify import verify
from server.judging import Judge, judge_of
from simulator.engine import Run, silo_names
from simulator.flat import Flat
from simulator.link import Travelled, travelled
from simulator.memory import Memory
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.trainers import SyntheticTrainer
from tests.simulator.test_reviving import Ones
from tests.simulator.test_rooms import planned, scenario

TIERED = (
    "buffer = 2\n[link]\ndownload_density = 0.8\nupload_density = 0.4\ndownload_decay = 0.5\nupload_decay = 0.8\n"
    'decay_every = 4\n[link.tiers.slow]\nsilos = ["silo-00001"]\ndownload_density = 0.2\nupload_density = 0.1\n'
)


def replayed(rooms: Rooms, folder: Path) -> Replay:
    rooms.export(folder)
    rooms.close()
    exported = Export(folder)
    checked = verify(exported, pin(exported, None))
    assert checked.report.verified, checked.report.findings
    return replay(exported, checked.history)


def test_a_reviver_reads_each_silo_as_its_tier_sent_it(tmp_path: Path) -> None:
    settings = scenario(revival_seconds=0.5)
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    jobs = [planned(trainer, TIERED + "[revival]\nwarmup = 0\nfreeze = 0\nlate = 30")]
    told, heads = [], []
    for server in (Memory(jobs, silo_names(settings), Rows()), None):
        rows, reviver = Rows(), Ones()
        played: Any = server or Rooms(jobs, silo_names(settings), rows, tmp_path, settings.seed)
        Run(settings, played, trainer, rows, {"vector": reviver}).play()
        told.append([_digests(task.teachers) for task in reviver.tasks])
        heads.append(played.parameters("vector", played.head("vector")).digest())
    assert told[0] == told[1]
    assert heads[0] == heads[1]
    assert len(told[0]) > 3
    assert replayed(played, tmp_path / "export").ok


def _digests(teachers: Any) -> dict[str, tuple[str, str]]:
    return {one.silo: (one.base.digest(), one.delta.digest()) for one in teachers.values()}


def test_replay_finds_an_update_that_is_denser_than_its_silos_tier_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silo of tier slow sends what others may, and its server lets it in."""

    def denser(whole: Flat, packing: Packing | None) -> Travelled:
        return travelled(whole, packing and replace(packing, density=0.4))

    def lenient(manifest: Manifest, packing: Packing | None, size: int) -> Judge:
        return judge_of(manifest, packing and replace(packing, density=1.0), size)

    monkeypatch.setattr("simulator.rooms.travelled", denser)
    monkeypatch.setattr("server.intake.judge_of", lenient)
    monkeypatch.setattr("server.state.records.most_bytes", lambda manifest, packing: manifest.file_bytes)
    settings = scenario()
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    rows = Rows()
    level = TIERED.replace("upload_decay = 0.8\n", "")  # so that all others may send this much
    rooms = Rooms([planned(trainer, level)], silo_names(settings), rows, tmp_path, settings.seed)
    Run(settings, rooms, trainer, rows).play()
    found = replayed(rooms, tmp_path / "export")
    assert 0 < len(found.different) < len(found.steps)
    assert "more than 4 elements of the trainable tensors are kept" in found.different[0].differs
    assert found.different[0].differs.startswith("delta of update ")
