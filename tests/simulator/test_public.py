"""A simulated job whose reviver distils on public records."""

from pathlib import Path

import pytest

from anabranch.errors import Refused
from tests.simulator.test_reviving import REVIVAL, TASK, _head, managed

PUBLIC = """
    def public(self):
        class Silo:
            params = {"silo": 0}
        return self.dataset(Silo, "train")
"""
ON_PUBLIC = REVIVAL + 'synthesis = "public"\n'


def test_what_is_distilled_on_public_records_is_in_the_versions(tmp_path: Path) -> None:
    found = managed(tmp_path / "job", ON_PUBLIC, TASK + PUBLIC)
    assert managed(tmp_path / "job", ON_PUBLIC, TASK + PUBLIC) == found
    assert _head(found) != _head(managed(tmp_path / "job", "", TASK + PUBLIC))


def test_without_public_records_the_simulation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot be revived: .* no method public\(\)"):
        managed(tmp_path / "job", ON_PUBLIC)
