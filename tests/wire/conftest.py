import pytest

from tests.wire import pki


@pytest.fixture(scope="session")
def ca() -> pki.Authority:
    return pki.authority()
