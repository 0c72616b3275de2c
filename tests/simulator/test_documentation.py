"""docs/simulating.md explains every key there is, and no other; its examples are read by the real parsers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from console.submit import read
from simulator.chance import Constant, Exponential, Lognormal, Uniform
from simulator.comparison import Comparison, read_comparison
from simulator.contest import Contest
from simulator.run import Told
from simulator.scenario import Scenario, read_scenario

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulating.md").read_text()
DISTRIBUTIONS = (Constant, Uniform, Lognormal, Exponential)


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """With those of inner tables, as `table.key`."""
    for name, field in model.model_fields.items():
        key = before + (field.alias or name)
        yield key
        for inner in models(field.annotation):
            if inner not in DISTRIBUTIONS:
                yield from keys(inner, f"{key}.")


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[str]:
    return re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)


def test_every_key_of_a_scenario_is_explained() -> None:
    kinds = {model.model_fields["kind"].annotation: model for model in DISTRIBUTIONS}
    named = {get_args(kind)[0]: model for kind, model in kinds.items()}
    explained = [row for row in rows(section("The scenario")) if row not in named]
    assert sorted(explained) == sorted(set(keys(Scenario)))
    for kind, model in named.items():
        told = re.search(rf"^\| `{kind}` \| ([^|]*) \|", PAGE, re.MULTILINE)
        assert told, kind
        assert set(re.findall(r"`(\w+)`", told[1])) == set(model.model_fields) - {"kind"}


def test_every_key_of_a_comparison_is_explained() -> None:
    assert sorted(rows(section("Comparing strategies"))) == sorted(set(keys(Comparison)))


def test_every_file_of_a_run_is_explained() -> None:
    files = [
        "updates.parquet",
        "versions.parquet",
        "revivals.parquet",
        "metrics.parquet",
        "run.json",
        "speed.json",
        "index.html",
    ]
    assert rows(section("What a run leaves")) == files


def test_the_examples_are_what_the_commands_read(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n# (\w+\.toml)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in examples] == ["scenario.toml", "compare.toml"]
    for name, text in examples:
        (tmp_path / name).write_text(text)
    scenario = read_scenario(tmp_path / "scenario.toml")
    assert sum(group.count for group in scenario.silos) == 5
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    comparison = read_comparison(tmp_path / "compare.toml")
    folder, file = read(comparison.job)
    (data,) = scenario.data.values()
    scenario = scenario.model_copy(
        update={"data": {file.job.data: data.model_copy(update={"validation": data.path})}}
    )
    contest = Contest(comparison, Told(file, folder), scenario, tmp_path / "out")
    assert [len(contest.candidates(entrant)) for entrant in comparison.entrants] == [6, 6]
    assert list(scenario.data) == ["digits"]
