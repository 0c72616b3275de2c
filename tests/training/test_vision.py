"""examples/vision: a cycle by itself, on few pictures."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


def test_the_vision_example_alone_makes_one_dry_cycle(tools: Any, tmp_path: Path) -> None:
    runpy.run_path(str(tools.examples / "vision" / "data.py"))["write"](tmp_path, count=60)
    with np.load(tmp_path / "noisy" / "part-1.npz") as file:
        assert (file["x"].shape, file["x"].dtype, set(file["y"])) == ((60, 3, 32, 32), np.uint8, {0, 1, 2})
    code = shutil.copytree(tools.examples / "vision", tmp_path / "code")
    job = (code / "job.toml").read_text()
    assert "local_steps = 40" in job
    (code / "job.toml").write_text(job.replace("local_steps = 40", "local_steps = 4"))
    done = subprocess.run(
        [sys.executable, code / "train.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ANABRANCH_DATA": str(tmp_path / "noisy")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 optimizer steps" in done.stderr
