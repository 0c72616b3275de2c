"""The server in memory against the real one: the same run, and a log an auditor accepts."""

from pathlib import Path
from typing import Any

import pytest

from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from auditor.export import Export
from auditor.pin import pin
from auditor.replay import replay
from auditor.verify import verify
from simulator.engine import Run, silo_names
from simulator.memory import Memory, Planned
from simulator.results import files, write
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.run import Told, play
from simulator.scenario import Scenario
from simulator.trainers import SyntheticTrainer

GROUPS: list[dict[str, Any]] = [
    {"count": 3, "train": {"kind": "lognormal", "median": 1.0, "sigma": 0.3}},
    {"count": 2, "train": {"kind": "lognormal", "median": 4.0, "sigma": 0.3}},
    {
        "train": {"kind": "exponential", "mean": 3.0},
        "evaluate": {"kind": "constant", "seconds": 0.5},
        "dropout": {"probability": 0.2, "away": {"kind": "exponential", "mean": 9.0}},
    },
]
CASES = {
    "fedbuff": "buffer = 2\nstaleness_exponent = 0.5",
    "fedbuff that waits": 'buffer = 4\nmax_wait = "1s"\nnormalise = "count"',
    "fedavg": 'strategy = "fedavg"\nmax_wait = "5s"',
    "adam": 'buffer = 1\nserver_optimizer = { name = "adam", lr = 0.01 }',
    "too late": "buffer = 1\nmax_staleness = 3\nema = 0",
    "fedasync": 'strategy = "fedasync"\nalpha = 0.6\nstaleness_exponent = 0.5',
    "afl-dw": 'strategy = "afl-dw"\ns_max = 5',
    "ca2fl": 'strategy = "ca2fl"\nbuffer = 2',
    "fedfix": 'strategy = "fedfix"\ninterval = "3s"',
    "fedcompass": 'strategy = "fedcompass"\nlocal_steps_min = 4\nstaleness_exponent = 0.5',
    "fedcompass that waits": 'strategy = "fedcompass"\nlocal_steps_min = 1\nmax_wait = "6s"\nmixes = "deltas"',
    "norm": "buffer = 1\nmax_update_norm = 0.35",
    "sparse": "buffer = 2\n[link]\ndownload_density = 0.5\nupload_density = 0.25",
    "sparse up, rounded": 'strategy = "ca2fl"\nbuffer = 2\n[link]\nupload_density = 0.3\nupload_values = "int8"',
    "in chunks, two bits, fed back": "buffer = 2\nmax_update_norm = 0.5\n[link]\nupload_density = 0.2\nupload_chunk = 8\n"
    'upload_values = "int2"\nupload_feedback = 0.9',
    "sparse down, rounded": 'buffer = 1\nserver_optimizer = { name = "adamw", lr = 0.01 }\n[link]\ndownload_density = 0.3\n'
    'download_values = "bf16"',
    "sparser with time, in tiers": "buffer = 2\n[link]\ndownload_density = 0.5\nupload_density = 0.5\nupload_decay = 0.6\n"
    'download_decay = 0.7\ndecay_every = 3\n[link.tiers.slow]\nsilos = ["silo-00003", "silo-00004"]\n'
    'download_density = 0.2\nupload_density = 0.1\nupload_values = "int8"\n[link.tiers.near]\nsilos = ["silo-00000"]\n'
    "download_density = 1.0\nupload_density = 1.0",
    "one tier alone": 'strategy = "ca2fl"\nbuffer = 2\n[link.tiers.slow]\nsilos = ["silo-00003"]\nupload_density = 0.1\n'
    'download_values = "bf16"',
}


def planned(trainer: SyntheticTrainer, aggregation: str, name: str = "vector") -> Planned:
    file = parse_job_file(
        f'[job]\nname = "{name}"\ntask = "task.py:Vector"\n[evaluation]\nevery = 10\n[stop]\nversions = 25\n'
        f"[aggregation]\n{aggregation}\n"
    )
    terms = JobTerms(
        file=file,
        archive_sha256=sha256(b""),
        initial_sha256=trainer.initial.digest(),
        manifest_sha256=trainer.manifest.digest(),
    )
    return Planned(name, terms, trainer.manifest, b"", trainer.initial)


def scenario(**more: Any) -> Scenario:
    settings = {"seed": 3, "horizon": "60s", "silos": GROUPS, "synthetic": {"parameters": 40}}
    return Scenario.model_validate({**settings, "measure": {"every": "7s"}, **more})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("takes", [0.0, 0.7])
def test_both_servers_play_the_same_run(case: str, takes: float, tmp_path: Path) -> None:
    settings = scenario(aggregation_seconds=takes)
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    jobs = [planned(trainer, CASES[case])]
    light, full = Rows(), Rows()
    memory = Memory(jobs, silo_names(settings), light)
    Run(settings, memory, trainer, light).play()
    rooms = Rooms(jobs, silo_names(settings), full, tmp_path, settings.seed)
    Run(settings, rooms, trainer, full).play()
    assert full.versions == light.versions
    assert full.metrics == light.metrics
    assert full.updates == light.updates
    assert rooms.head("vector") == memory.head("vector") > 3
    head = memory.head("vector")
    assert rooms.parameters("vector", head).digest() == memory.parameters("vector", head).digest()
    assert rooms.status("vector") == memory.jobs["vector"].status
    rooms.export(tmp_path / "export")
    rooms.close()
    exported = Export(tmp_path / "export")
    checked = verify(exported, pin(exported, None))
    assert checked.report.verified
    assert replay(exported, checked.history).exact == head


def test_two_jobs_on_both_servers(tmp_path: Path) -> None:
    settings = scenario()
    assert settings.synthetic is not None
    trainer = SyntheticTrainer(settings.synthetic, settings.seed)
    jobs = [planned(trainer, "buffer = 2", "one"), planned(trainer, "buffer = 3\nema = 0", "two")]
    light, full = Rows(), Rows()
    Run(settings, Memory(jobs, silo_names(settings), light), trainer, light).play()
    rooms = Rooms(jobs, silo_names(settings), full, tmp_path, settings.seed)
    Run(settings, rooms, trainer, full).play()
    rooms.close()
    assert full.updates == light.updates
    assert full.versions == light.versions


def test_a_simulation_with_its_log_is_exported_verified_and_replayed(tmp_path: Path) -> None:
    text = '[job]\nname = "vector"\ntask = "task.py:Vector"\n[stop]\nversions = 12\n'
    told = Told(parse_job_file(text + '[aggregation]\nstrategy = "ca2fl"\nbuffer = 2\n'), tmp_path)
    light, full = (files(play([told], scenario(log=kept))) for kept in (False, True))
    assert not any(name.startswith("export/") for name in light)
    tables = [name for name in light if name.endswith(".parquet")]
    assert [full[name] for name in tables] == [light[name] for name in tables]
    write(tmp_path / "seed-3", full)
    exported = Export(tmp_path / "seed-3" / "export")
    checked = verify(exported, pin(exported, None))
    assert checked.report.verified
    done = replay(exported, checked.history)
    assert done.ok
    assert done.exact == 12
