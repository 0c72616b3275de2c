"""Stories, written and audited."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from auditor.export import Export
from auditor.main import main
from auditor.pin import pin
from auditor.verify import Verified, verify
from tests.auditor import trouble
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
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of the program."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["anabranch-audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def told(story: Story) -> Story:
    """A whole story, written."""
    story.begin().whole().book.write()
    return story


@pytest.fixture
def asked(run):
    """asked(*arguments) -> the document of a command that succeeds."""

    def asked(*arguments):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err or out
        return json.loads(out)

    return asked


@pytest.fixture
def busy(story: Story) -> Story:
    """A federation with trouble and a job that goes on, written."""
    trouble.busy(story.begin(trouble.OFTEN)).book.write()
    return story
