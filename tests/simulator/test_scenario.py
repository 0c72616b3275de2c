"""Scenarios: what a person may write, windows of work, and dealing records."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Refused
from simulator.dealing import deal, shares
from simulator.scenario import Available, Data, published, read_scenario

TIMES = st.integers(0, 400).map(lambda n: n / 4)


@settings(deadline=None)
@given(st.integers(1, 40), st.data(), TIMES, TIMES)
def test_work_goes_on_in_open_windows_only(
    every: int, draw: st.DataObject, start: float, work: float
) -> None:
    begins, lasts = draw.draw(st.integers(0, every - 1)), draw.draw(st.integers(1, every))
    window = Available.model_validate({"every": f"{every}s", "from": f"{begins}s", "lasts": f"{lasts}s"})
    # The same by walking: a quarter of a second at a time.
    now, left = start, work
    while left > 0:
        if (now - begins) % every < lasts:
            left -= 0.25
        now += 0.25
    if work == 0:
        while (now - begins) % every >= lasts:
            now += 0.25
    assert window.finish(start, work) == now


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("horizon = ", "is not TOML"),
        ('horizon = "10h"', "say who the silos are"),
        ('horizon = "10h"\ndelays = "revive-default"', "delays and population go together"),
        ('horizon = "10h"\npopulation = 5\ndelays = "revive-default"', "say what silos train on"),
        ('horizon = "soon"\n[synthetic]\n[[silos]]\ntrain = { kind = "constant", seconds = 1 }', "horizon"),
        (
            'horizon = "1h"\n[synthetic]\n[[silos]]\ntrain = { kind = "constant", seconds = -1 }',
            "silos.0.train",
        ),
        ('horizon = "1h"\n[synthetic]\n[[silos]]\ntrain = { kind = "normal" }', "silos.0.train"),
        (
            'horizon = "1h"\nsped = 3\n[synthetic]\n[[silos]]\ntrain = { kind = "constant", seconds = 1 }',
            "unknown key sped",
        ),
        (
            'horizon = "1h"\n[synthetic]\n[[silos]]\ntrain = { kind = "constant", seconds = 1 }\n'
            'available = { every = "8h", lasts = "9h" }',
            "does not fit into 8h",
        ),
    ],
)
def test_a_wrong_scenario_is_explained(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        read_scenario(write(tmp_path / "scenario.toml", text))


def test_paths_are_relative_to_the_scenario(tmp_path: Path) -> None:
    text = 'horizon = "1h"\n[data.default]\npath = "a.npz"\n[[silos]]\ntrain = { kind = "constant", seconds = 1 }'
    scenario = read_scenario(write(tmp_path / "scenario.toml", text))
    assert scenario.data["default"].path == tmp_path / "a.npz"
    with pytest.raises(Refused, match="there is no scenario"):
        read_scenario(tmp_path / "nowhere.toml")


def test_the_published_delays() -> None:
    for kind, middle in (("revive-default", 1.3), ("revive-shifted", 0.1)):
        profiles = published(kind, 4000, 0)  # type: ignore[arg-type]
        means = [profile.train.mean for profile in profiles]  # type: ignore[union-attr]
        assert np.mean(means) == pytest.approx(middle, rel=0.01)
        assert profiles == published(kind, 4000, 0)  # type: ignore[arg-type]
        assert profiles != published(kind, 4000, 1)  # type: ignore[arg-type]
    shares_of = np.unique(
        [profile.train.mean for profile in published("revive-default", 4000, 0)], return_counts=True
    )  # type: ignore[union-attr]
    assert shares_of[0].tolist() == [1.0, 1.3, 1.6]
    assert shares_of[1] / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


@settings(deadline=None)
@given(st.integers(1, 12), st.floats(0.05, 100), st.integers(0, 5), st.integers(1, 6))
def test_every_record_is_dealt_once(silos: int, alpha: float, seed: int, classes: int) -> None:
    labels = np.arange(600) % classes
    try:
        parts = shares(labels, silos, alpha, 1, seed)
    except Refused:
        assert alpha < 0.5
        return
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    assert all(len(part) for part in parts)


def test_small_alpha_is_uneven_and_large_alpha_even() -> None:
    labels = np.arange(10_000) % 10

    def spread(alpha: float) -> float:
        parts = shares(labels, 10, alpha, 1, 3)
        table = np.array([[np.sum(labels[part] == label) for label in range(10)] for part in parts])
        return float((table / 1000).max(axis=0).mean())

    assert spread(0.1) > 0.5
    assert spread(1000.0) < 0.12


def test_dealing_writes_files_of_the_same_kind(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.savez(tmp_path / "all.npz", x=x, y=np.arange(20) % 2)
    data = Data.model_validate({"path": tmp_path / "all.npz", "deal": {"kind": "dirichlet", "alpha": 5.0}})
    paths = deal(data, 3, 0, tmp_path / "dealt")
    found = np.concatenate([np.load(path)["x"] for path in paths])
    assert np.array_equal(found[np.argsort(found[:, 0])], x)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in deal(data, 3, 0, tmp_path / "again")] == first

    rows = "school,score\n" + "".join(f"{n % 3},{n}\n" for n in range(9))
    (tmp_path / "all.csv").write_text(rows)
    column = Data.model_validate({"path": tmp_path / "all.csv", "deal": {"kind": "column", "name": "school"}})
    schools = deal(column, 3, 0, tmp_path / "schools")
    assert schools[0].read_text().split() == [
        "school,score",
        "0,0",
        "0,3",
        "0,6",
    ]
    with pytest.raises(Refused, match="there are 3 values of column school, and 4 silos"):
        deal(column, 4, 0, tmp_path / "more")
    with pytest.raises(Refused, match="has the columns school, score, not city"):
        deal(
            column.model_copy(update={"deal": column.deal.model_copy(update={"name": "city"})}),
            3,
            0,
            tmp_path,
        )

    files = Data.model_validate({"path": tmp_path, "deal": {"kind": "files", "pattern": "*.csv"}})
    assert deal(files, 1, 0, tmp_path) == [tmp_path / "all.csv"]
