"""Stories, written and audited."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from auditor.export import Export
from auditor.pin import pin
from auditor.verify import Verified, verify
from tests.auditor.book import Book
from tests.auditor.story import Story


def _audit(story: Story, receipts: Sequence[Path] = ()) -> Verified:
    export = Export(story.book.write())
    return verify(export, pin(export, story.book.signer.vkey), receipts)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Nothing but its genesis yet."""
    return Story(Book(tmp_path / "export"))


@pytest.fixture(scope="session")
def audit() -> Callable[..., Verified]:
    """audit(story, receipts=()): write the export and verify it under the story's own key."""
    return _audit


@pytest.fixture
def told(story: Story) -> Story:
    """A whole story, written."""
    story.begin().whole().book.write()
    return story
