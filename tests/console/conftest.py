import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # demo_log is a module of these tests alone


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An audit export's entries, checkpoint and key."""
    from demo_log import federation, write_export

    directory = tmp_path / "export"
    directory.mkdir()
    write_export(federation(), directory)
    return directory
