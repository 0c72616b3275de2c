"""Tiers and schedules in virtual time: with a reviver, and with a server that is not strict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Refused
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
from simulator.results import files, write
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.run import play
from simulator.trainers import SyntheticTrainer
from tests.simulator.test_playback import like, told
from tests.simulator.test_reviving import Ones
from tests.simulator.test_rooms import GROUPS, planned, scenario

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
    taught, heads = [], []
    for server in (Memory(jobs, silo_names(settings), Rows()), None):
        rows, reviver = Rows(), Ones()
        played: Any = server or Rooms(jobs, silo_names(settings), rows, tmp_path, settings.seed)
        Run(settings, played, trainer, rows, {"vector": reviver}).play()
        taught.append([_digests(task.teachers) for task in reviver.tasks])
        heads.append(played.parameters("vector", played.head("vector")).digest())
    assert taught[0] == taught[1]
    assert heads[0] == heads[1]
    assert len(taught[0]) > 3
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

    monkeypatch.setattr("simulator.link.travelled", denser)
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


NAMED = TIERED.replace("silo-00001", "clinic-b")
ORDER = (["a", "b", "c"], ["clinic-a", "clinic-b"], ["z"])


def named(*names: list[str]) -> list[dict[str, Any]]:
    """The groups of other tests, whose silos go by names."""
    return [{**group, "names": said} for group, said in zip(GROUPS, names, strict=True)]


def test_silos_go_by_the_names_that_tiers_have(tmp_path: Path) -> None:
    """Also where these do not come in order."""
    settings = scenario(silos=named([], ["clinic-b", "clinic-a"], []))
    numbered = ["silo-00000", "silo-00001", "silo-00002"]
    assert silo_names(settings) == [*numbered, "clinic-b", "clinic-a", "silo-00005"]
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    # The log has the participants of a fedfix job in order.
    jobs = [planned(trainer, NAMED.replace("buffer = 2", 'strategy = "fedfix"\ninterval = "3s"'))]
    light, full = Rows(), Rows()
    Run(settings, Memory(jobs, silo_names(settings), light), trainer, light).play()
    rooms = Rooms(jobs, silo_names(settings), full, tmp_path, settings.seed)
    Run(settings, rooms, trainer, full).play()
    assert full.updates == light.updates
    assert full.versions == light.versions
    columns = (light.updates[name] for name in ("silo", "base", "bytes_up"))
    sent = {silo: up for silo, base, up in zip(*columns, strict=True) if base < 4}
    assert sent["clinic-b"] < sent["clinic-a"]
    assert replayed(rooms, tmp_path / "export").ok


def test_in_the_order_of_an_export_silos_go_by_its_names(tmp_path: Path) -> None:
    """The scenario of the simulation need not say them."""
    job = told(tmp_path, NAMED)
    write(tmp_path / "real", files(play([job], scenario(silos=named(*ORDER), log=True))))
    found = like(files(play([job], scenario(), like=tmp_path / "real" / "export")))
    assert found["same_terms"]
    assert found["equal"] == found["versions"] > 3


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 silos; name each, or none"):
        scenario(silos=[{**GROUPS[1], "names": ["a"]}])
    for names in (["a", "a"], ["silo-00002", "b"]):
        with pytest.raises(Refused, match="two silos of the scenario have one name"):
            silo_names(scenario(silos=[{**GROUPS[1], "names": names}, GROUPS[2]]))
