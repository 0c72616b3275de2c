import pytest

from anabranch.wire import tensors
from tests.wire import pki
from tests.wire.samples import ARRAYS, MANIFEST


@pytest.fixture(scope="session")
def ca() -> pki.Authority:
    return pki.authority()


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good"
    tensors.write_tensors(path, MANIFEST, ARRAYS)
    return path
