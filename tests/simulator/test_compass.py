"""fedcompass in virtual time: tasks take as long as their steps, and groups arrive together."""

from collections import defaultdict
from pathlib import Path

import pytest
from sqlalchemy import select

from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from auditor.export import Export
from auditor.pin import pin
from auditor.replay import replay
from auditor.verify import verify
from server.state import tables
from simulator.engine import START, Run, silo_names
from simulator.memory import Memory, Planned
from simulator.rooms import Rooms
from simulator.rows import Rows
from simulator.scenario import Scenario
from simulator.trainers import SyntheticTrainer

SECONDS = {"silo-00000": 1.0, "silo-00001": 1.5, "silo-00002": 3.0}
JOB = (
    '[job]\nname = "vector"\ntask = "task.py:Vector"\n[training]\nlocal_steps = 50\n[evaluation]\nevery = 1000\n'
    '[stop]\nversions = 1000\n[aggregation]\nstrategy = "fedcompass"\nlocal_steps_min = 10\n'
)


def world(sigma: float) -> tuple[Scenario, SyntheticTrainer, list[Planned]]:
    drawn = [{"kind": "lognormal", "median": median, "sigma": sigma} for median in SECONDS.values()]
    scenario = Scenario.model_validate(
        {
            "horizon": "60s",
            "silos": [{"train": train} for train in drawn],
            "synthetic": {"parameters": 10},
        }
    )
    assert scenario.synthetic is not None
    trainer = SyntheticTrainer(scenario.synthetic, 0)
    terms = JobTerms(
        file=parse_job_file(JOB),
        archive_sha256=sha256(b""),
        initial_sha256=trainer.initial.digest(),
        manifest_sha256=trainer.manifest.digest(),
    )
    return scenario, trainer, [Planned("vector", terms, trainer.manifest, b"", trainer.initial)]


def test_a_task_of_fewer_steps_takes_less_and_all_arrive_together() -> None:
    scenario, trainer, jobs = world(0.0)
    rows = Rows()
    Run(scenario, Memory(jobs, silo_names(scenario), rows), trainer, rows).play()
    updates, versions = rows.updates, rows.versions
    for silo, steps, leased, received in zip(
        *(updates[name] for name in ("silo", "steps", "leased_at", "received_at")), strict=True
    ):
        assert received - leased == pytest.approx(SECONDS[silo] * steps / 50)
    last: dict[str, int] = dict(zip(updates["silo"], updates["steps"], strict=True))
    assert last == {"silo-00000": 50, "silo-00001": 33, "silo-00002": 16}
    assert versions["inputs"][-20:] == [3] * 20
    assert set(versions["closed_by"][-20:]) == {"full"}


def test_a_group_is_expected_together_and_the_export_is_replayed(tmp_path: Path) -> None:
    scenario, trainer, jobs = world(0.3)
    rows = Rows()
    rooms = Rooms(jobs, silo_names(scenario), rows, tmp_path, 0)
    Run(scenario, rooms, trainer, rows).play()
    groups = defaultdict(set)
    with rooms.core.reader.connect() as connection:
        issued = connection.execute(select(tables.leases)).all()
    for lease in issued:
        assert 10 <= lease.local_steps <= 50
        if lease.arrival_group is not None:
            groups[lease.arrival_group].add((lease.expected, lease.deadline))
            assert lease.issued_at + (lease.local_steps - 0.001) * lease.step_seconds <= lease.expected + 1e-5
    assert {len(told) for told in groups.values()} == {1}
    assert len(groups) < len([lease for lease in issued if lease.arrival_group is not None])
    assert min(lease.issued_at for lease in issued) == START
    rooms.export(tmp_path / "export")
    rooms.close()
    exported = Export(tmp_path / "export")
    checked = verify(exported, pin(exported, None))
    assert checked.report.verified, checked.report.findings
    done = replay(exported, checked.history)
    assert done.ok
    assert done.exact == len(rows.versions["version"]) > 20
    assert {"full", "latest", "first"} <= set(rows.versions["closed_by"])
