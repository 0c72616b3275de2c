import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch.errors import Corrupt, Reason, Refused, Unavailable
from anabranch.wire.manifest import Manifest, TensorSpec
from silo_agent import approval, identity
from silo_agent.agent import connect
from silo_agent.approval import Decisions, Proposal, check_runnable, examine, missing_requires, standing
from silo_agent.config import Home
from silo_agent.main import app
from silo_agent.policy import Policy, parse_policy
from tests.silo_agent.world import MANIFEST, World

PYTHON = Path(sys.executable)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "task.py").write_text("")
    return folder


def proposal(world: World, home: Home) -> Proposal:
    with connect(home) as connection:
        return examine(connection.client.jobs(0)[0], connection.log)


def bind_data(home: Home, extra: str = "") -> Policy:
    (home.path / "records").mkdir(exist_ok=True)
    home.policy.write_text(f'[data.records]\npath = "{home.path / "records"}"\n{extra}')
    return parse_policy(home.policy.read_text(), "policy.toml")


def invoke(home: Home, *arguments: str, answer: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, [*arguments, "--dir", str(home.path)], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_job_is_believed_only_as_far_as_the_log_goes(world: World, enrolled: Home, code: Path) -> None:
    terms = world.offer(code)
    found = proposal(world, enrolled)
    assert (found.terms, found.digest) == (terms, terms.digest())
    other = Manifest((TensorSpec("w", (1,), "trainable"),))
    world.jobs[0].manifest = other.encode()
    with pytest.raises(Refused, match="manifest"):
        proposal(world, enrolled)
    changed = terms.model_copy(update={"archive_sha256": "e" * 64})
    world.jobs[0].terms = changed.encode()
    with pytest.raises(Refused) as refusal:
        proposal(world, enrolled)
    assert refusal.value.code is Reason.DIGEST_MISMATCH


def test_by_default_nothing_is_decided_and_a_person_stands_above_the_list(
    world: World, enrolled: Home, code: Path
) -> None:
    digest = world.offer(code).digest()
    found, decisions = proposal(world, enrolled), Decisions(enrolled.decisions)
    listed = parse_policy(f'[approve]\nterms = ["{digest}"]', "")
    assert standing(found, Policy(), decisions) is None
    assert standing(found, listed, decisions) == "approve"
    for decision in ("deny", "approve", "withdraw"):
        decisions.record(digest, "tiny-1", decision)  # type: ignore[arg-type]
        assert standing(found, listed, decisions) == decision
    (enrolled.decisions / f"{digest}.json").write_text("{}")
    with pytest.raises(Corrupt, match="decide again"):
        standing(found, listed, decisions)


def test_what_a_job_requires_is_named_one_by_one() -> None:
    assert (
        missing_requires(PYTHON, ("numpy>=1.20", "pydantic", "typer[all]>=0.1; python_version >= '3'")) == []
    )
    missing = missing_requires(PYTHON, ("numpy>=99", "no-such-thing", ">>", "pytest; python_version < '3'"))
    assert [text.split(",")[0] for text in missing] == ["numpy>=99", "no-such-thing", "'>>'"]
    assert "is installed" in missing[0]
    with pytest.raises(Refused, match="does not run"):
        missing_requires(Path("/no/such/python"), ("numpy",))


def test_an_approval_cannot_take_effect_without_data(world: World, enrolled: Home, code: Path) -> None:
    world.offer(code)
    found = proposal(world, enrolled)
    with pytest.raises(Refused, match=r"\[data\.records\]"):
        check_runnable(found, Policy(), PYTHON)
    rules = bind_data(enrolled)
    check_runnable(found, rules, PYTHON)
    (enrolled.path / "records").rmdir()
    with pytest.raises(Refused, match="does not exist"):
        check_runnable(found, rules, PYTHON)


def test_a_model_larger_than_the_policy_allows(world: World, enrolled: Home, code: Path) -> None:
    world.offer(code)
    rules = bind_data(enrolled, "[run]\nmax_update_bytes = '10B'")
    with pytest.raises(Refused, match="max_update_bytes") as refusal:
        check_runnable(proposal(world, enrolled), rules, PYTHON)
    assert refusal.value.code is Reason.POLICY


def test_approve_shows_asks_signs_and_logs(world: World, enrolled: Home, code: Path) -> None:
    terms = world.offer(code)
    bind_data(enrolled)
    world.approver = identity.load(enrolled.identity).approver_key.public_key().public_bytes_raw()
    status, said = invoke(enrolled, "approve", "tiny-1", answer="n\n")
    assert status == 1
    assert terms.digest() in said
    assert terms.archive_sha256 in said
    assert not world.decided
    assert Decisions(enrolled.decisions).of(terms.digest()) is None
    status, _ = invoke(enrolled, "approve", terms.digest()[:12], answer="y\n")
    assert (status, world.decided, Decisions(enrolled.decisions).of(terms.digest())) == (
        0,
        ["approved"],
        "approve",
    )
    status, said = invoke(enrolled, "approve", "tiny-1", "--yes", "--json")
    assert (status, world.decided) == (0, ["approved"])
    assert "knows already" in said
    status, said = invoke(enrolled, "withdraw", "tiny-1", "--yes", "--json")
    assert (json.loads(said)["decision"], world.decided) == ("withdrawn", ["approved", "withdrawn"])
    journal = (enrolled.job("tiny-1") / "receipts.jsonl").read_text().splitlines()
    assert len(journal) == 2


def test_approving_what_cannot_run_here_is_refused(world: World, enrolled: Home, code: Path) -> None:
    world.offer(code, extra='requires = ["no-such-thing"]')
    bind_data(enrolled)
    with pytest.raises(Refused, match="no-such-thing"):
        invoke(enrolled, "approve", "tiny-1", "--yes")
    with pytest.raises(Refused, match="no job 'tiny-2'"):
        invoke(enrolled, "deny", "tiny-2", "--yes")
    assert not world.decided


def test_a_decision_is_kept_while_the_server_is_away(
    world: World, enrolled: Home, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = world.offer(code).digest()
    bind_data(enrolled)

    def away(*_: object) -> None:
        raise Unavailable("draining")

    monkeypatch.setattr(approval, "announce", away)
    status, said = invoke(enrolled, "approve", "tiny-1", "--yes")
    assert status == 0
    assert "the running agent will tell it" in said.replace("\n", " ")
    assert Decisions(enrolled.decisions).of(digest) == "approve"


def test_a_job_is_stopped_here_also_while_the_server_is_away(
    world: World, enrolled: Home, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = world.offer(code).digest()
    bind_data(enrolled)
    invoke(enrolled, "approve", "tiny-1", "--yes")
    world.stop()
    status, said = invoke(enrolled, "withdraw", "tiny-1", "--yes")
    assert (status, Decisions(enrolled.decisions).of(digest)) == (0, "withdraw")
    assert "the running agent will tell it" in said.replace("\n", " ")
    for arguments in (("withdraw", "tiny-2"), ("approve", "tiny-1")):
        with pytest.raises(Unavailable):
            invoke(enrolled, *arguments, "--yes")
    assert Decisions(enrolled.decisions).of(digest) == "withdraw"


def test_jobs_lists_terms_for_people_and_programs(world: World, enrolled: Home, code: Path) -> None:
    terms = world.offer(code)
    _, said = invoke(enrolled, "jobs")
    for fact in (
        terms.digest(),
        terms.archive_sha256,
        "task.py:Tiny",
        "4 steps of 4 records",
        "records",
        "never sent",
    ):
        assert fact in said.replace("\n", "") or fact in " ".join(said.split())
    _, said = invoke(enrolled, "jobs", "--json")
    (row,) = json.loads(said)["jobs"]
    assert (row["job"], row["decision"], row["terms_sha256"]) == ("tiny-1", "", terms.digest())
    assert row["update_bytes"] == MANIFEST.file_bytes
