"""The loops of docs/scripts.md run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from silo_agent.training.isolation import Isolation
from silo_agent.training.launcher import Launcher

PAGE = Path(__file__).parents[2] / "docs" / "scripts.md"


def script(heading: str) -> str:
    section = PAGE.read_text().split(f"\n## {heading}\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def job(tools: Any, job_folder: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.toml").write_text('[job]\nname = "page"\ntask = "train.py"\n')
    (tmp_path / "code" / "train.py").write_text(script(request.param))
    return tools.make_job(job_folder(request.node.name.partition("[")[0]), tmp_path / "code")


@pytest.mark.parametrize("job", ["Accelerate"], indirect=True)
def test_accelerate_needs_no_more_than_any_loop(
    job: Any, tools: Any, home: Path, isolated: Isolation, tmp_path: Path
) -> None:
    torch.save([(torch.full((8,), float(i % 2)), i % 2) for i in range(40)], tmp_path / "rows.pt")
    losses = {}
    for processes in (1, 2):
        with Launcher(home, processes=processes) as launcher:
            process = launcher.start(job.folder, job.terms, tools.bound(tmp_path / "rows.pt"), isolated)
            try:
                assert tools.wait_for(process, "ready")["is"] == "ready"
                for cycle in ("l-1", "l-2"):
                    process.request(job.train(cycle, 30))
                    trained = tools.wait_for(process, "trained")
                    assert (trained["is"], trained["steps"]) == ("trained", 30)
                    losses[processes, cycle] = trained["metrics"]["loss"]
            finally:
                process.stop(0)
    assert max(losses.values()) < 0.6  # of 0.69


@pytest.mark.parametrize("job", ["Going on inside a cycle"], indirect=True)
def test_a_loop_of_its_own_goes_on_inside_a_cycle(job: Any, tools: Any, start: Any, tmp_path: Path) -> None:
    torch.save(
        [(torch.full((1, 8), float(i % 2)), torch.tensor([i % 2])) for i in range(40)], tmp_path / "rows.pt"
    )
    data = tools.bound(tmp_path / "rows.pt")
    steps = 100_000  # more than can be done before it is told to stop
    stopped = start(job, data)
    tools.wait_for(stopped, "ready")
    stopped.request(job.train("l-1", steps))
    assert tools.wait_for(stopped, "progress")["step"] >= 1
    stopped.stop(20)
    saved = torch.load(job.folder / "work" / "cycles" / "l-1" / "save.pt")["step"]
    process = start(job, data)
    tools.wait_for(process, "ready")
    process.request(job.train("l-1", saved + 5))
    assert tools.wait_for(process, "progress")["step"] == saved + 1
    assert tools.wait_for(process, "trained")["steps"] == saved + 5
