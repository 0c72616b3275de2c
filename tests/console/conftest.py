import sys
from pathlib import Path

import pytest

from anabranch.v1 import admin_pb2
from console import submit

sys.path.insert(0, str(Path(__file__).parent))  # demo_log is a module of these tests alone


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An audit export's entries, checkpoint and key."""
    from demo_log import federation, write_export

    directory = tmp_path / "export"
    directory.mkdir()
    write_export(federation(), directory)
    return directory


@pytest.fixture(scope="session")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[admin_pb2.SubmitJobRequest], Path]:
    """What submitting the demo's job sends, and a copy of its version 0."""
    folder, file = submit.read(Path(submit.__file__).parent / "demo" / "job")
    kept = tmp_path_factory.mktemp("initial") / "v0.safetensors"
    with submit.prepared(folder, file) as job:
        kept.write_bytes(job.initial.read_bytes())
        return list(submit.messages(job)), kept
