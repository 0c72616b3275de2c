"""A run in the order of an export: the same versions under the same terms, the same arrivals under others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import Reason, Refused
from anabranch.terms import parse_job_file
from simulator.reading import table
from simulator.results import files, write
from simulator.run import Told, play
from simulator.scenario import Scenario
from tests.simulator.test_rooms import CASES, GROUPS


def told(folder: Path, aggregation: str, **more: str) -> Told:
    text = '[job]\nname = "vector"\ntask = "task.py:Vector"\n[evaluation]\nevery = 5\n[stop]\nversions = 25\n'
    return Told(parse_job_file(f"{text}[aggregation]\n{aggregation}\n"), folder)


def scenario(**more: Any) -> Scenario:
    settings = {"seed": 3, "horizon": "60s", "silos": GROUPS, "synthetic": {"parameters": 40}}
    return Scenario.model_validate({**settings, "measure": {"every": "7s"}, **more})


def recorded(tmp_path: Path, aggregation: str, **more: Any) -> dict[str, Mapping[str, Any]]:
    """A run on the real server, written to `tmp_path`/real; its tables and summary."""
    made = files(play([told(tmp_path, aggregation)], scenario(log=True, **more)))
    write(tmp_path / "real", made)
    return made


def like(made: Mapping[str, bytes]) -> Any:
    return json.loads(made["run.json"])["like"]


@pytest.mark.parametrize("case", [case for case in CASES if "fedcompass" not in case])
@pytest.mark.parametrize("takes", [0.0, 0.7])
def test_the_same_terms_in_the_order_of_an_export_make_its_versions(
    case: str, takes: float, tmp_path: Path
) -> None:
    recorded(tmp_path, CASES[case], aggregation_seconds=takes)
    job = told(tmp_path, CASES[case])
    again = files(play([job], scenario(), like=tmp_path / "real" / "export"))
    found = like(again)
    assert found["same_terms"]
    assert found["versions"] > 3
    assert (found["equal"], found["first_different"]) == (found["versions"], None)
    assert found["left_out"] == 0


def test_the_same_updates_go_into_the_same_versions(tmp_path: Path) -> None:
    """Of a run with dropouts and evaluations; the simulation's own rows say so too."""
    real = recorded(tmp_path, CASES["fedbuff"], aggregation_seconds=0.7)
    again = files(play([told(tmp_path, CASES["fedbuff"])], scenario(), like=tmp_path / "real" / "export"))
    columns = ["update", "silo", "base", "loss", "outcome", "version", "staleness"]
    for column in columns:
        assert column_of(again, column) == column_of(real, column), column
    assert max(late for late in column_of(again, "staleness") if late is not None) > 1


def test_another_strategy_meets_the_same_arrivals(tmp_path: Path) -> None:
    real = recorded(tmp_path, "buffer = 2")
    export = tmp_path / "real" / "export"
    other = files(play([told(tmp_path, 'strategy = "ca2fl"\nbuffer = 2')], scenario(), like=export))
    assert like(other) == {"same_terms": False, "left_out": 0}
    assert column_of(other, "update") == column_of(real, "update")
    assert column_of(other, "version") == column_of(real, "version")
    rounds = files(play([told(tmp_path, 'strategy = "fedavg"\nmax_wait = "20s"')], scenario(), like=export))
    assert like(rounds)["left_out"] > 0
    assert set(column_of(rounds, "update")) < set(column_of(real, "update"))


def column_of(made: Mapping[str, bytes], name: str) -> list[Any]:
    return list(table(made, "updates").column(name).to_pylist())


def test_a_schedule_by_finer_times_than_the_logs_is_not_played_again(tmp_path: Path) -> None:
    """A lease at the very moment its group closes: by the log's time it may come a microsecond before, or after."""
    recorded(tmp_path, CASES["fedcompass"])
    export = tmp_path / "real" / "export"
    with pytest.raises(Refused, match="fedcompass schedules by times finer than the log's"):
        play([told(tmp_path, CASES["fedcompass"])], scenario(), like=export)
    other = files(play([told(tmp_path, "buffer = 2")], scenario(), like=export))
    assert not like(other)["same_terms"]
    assert column_of(other, "update")


def test_what_cannot_be_played_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path, "buffer = 2")
    export, job = tmp_path / "real" / "export", told(tmp_path, "buffer = 2")
    with pytest.raises(Refused, match="6 silos trained in the export, the scenario has 5"):
        play([job], scenario(silos=GROUPS[:2]), like=export)
    with pytest.raises(Refused, match="one job is simulated at a time, and without `log`"):
        play([job], scenario(log=True), like=export)
    other = job.file.model_copy(update={"job": job.file.job.model_copy(update={"name": "other"})})
    with pytest.raises(Refused, match="has no job other; its jobs: vector") as refused:
        play([Told(other, tmp_path)], scenario(), like=export)
    assert refused.value.code is Reason.NOT_FOUND
    bundle = next(path for path in (export / "tile/entries").rglob("*") if path.is_file())
    bundle.write_bytes(bundle.read_bytes().replace(b'"kind":"train"', b'"kind":"trein"', 1))
    with pytest.raises(Refused, match="does not verify"):
        play([job], scenario(), like=export)
