"""Base models of a site: bound by name as data are, refused where they are missing, shown to whoever approves."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from silo_agent.approval import Proposal, check_runnable, describe
from silo_agent.check import HOPS, Visit
from silo_agent.config import Home
from silo_agent.main import app
from silo_agent.messages import OfferedJob
from silo_agent.policy import Bound, Policy, admit, bound, parse_policy
from silo_agent.probe import HopFailed

DATA = '[data.default]\npath = "/"\n'
MODEL = '[models.tiny]\npath = "/srv/models/tiny"\n'


def terms(base: str = 'base = "tiny"', adapter: str = "") -> JobTerms:
    file = parse_job_file(f'[job]\nname = "j"\ntask = "t.py:T"\n{base}\n{adapter}')
    digests = {"archive_sha256": "0" * 64, "initial_sha256": "1" * 64, "manifest_sha256": "2" * 64}
    return JobTerms(file=file, base_sha256="3" * 64, **digests)


def proposal(agreed: JobTerms) -> Proposal:
    job = OfferedJob.__new__(OfferedJob)  # what is looked at here does not come from the server
    object.__setattr__(job, "id", "j-1")
    object.__setattr__(job, "status", "waiting")
    return Proposal(job, agreed, agreed.digest(), None)


def rules(text: str) -> Policy:
    return parse_policy(text, "policy.toml")


def test_a_base_that_is_not_bound_is_refused_by_name() -> None:
    with pytest.raises(
        Refused, match=r"\[models\.tiny\].*this site binds other; add \[models\.tiny\]"
    ) as found:
        admit(rules(DATA + '[models.other]\npath = "/srv"'), terms())
    assert found.value.code is Reason.POLICY
    assert bound(rules(DATA), terms()) is None


def test_a_job_gets_the_base_it_names_and_no_other() -> None:
    allowing = rules(DATA + MODEL)
    given = admit(allowing, terms())
    assert given == bound(allowing, terms()) == Bound(allowing.data["default"], Path("/srv/models/tiny"))
    assert admit(allowing, terms("")).base is None
    elsewhere = rules(DATA + MODEL.replace("/srv/models/tiny", "/srv/models/newer"))
    assert bound(elsewhere, terms()) != given  # a running job is stopped and started with the other


def test_a_path_is_absolute() -> None:
    with pytest.raises(Refused, match=r"models\.tiny\.path.*absolute"):
        rules('[models.tiny]\npath = "tiny"')


def test_a_base_that_is_not_there_keeps_the_job_from_starting() -> None:
    with pytest.raises(
        Refused, match=r"policy.toml \[models.tiny\]: /srv/models/tiny does not exist"
    ) as found:
        check_runnable(proposal(terms()), rules(DATA + MODEL), Path("/usr/bin/false"))
    assert found.value.code is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("", "all that the task leaves trainable"),
        ('[adapter]\nheads = ["top"]', "LoRA of rank 8 at what peft takes for the architecture; top whole"),
        ('[adapter]\nfreeze_a = true\ntargets = ["q"]', "LoRA of rank 8, B alone at q; no module whole"),
        ('[adapter]\nkind = "head"\nheads = ["top"]', "top whole"),
    ],
)
def test_who_approves_is_told_what_trains_and_what_stays(adapter: str, said: str) -> None:
    told = dict(describe(proposal(terms(adapter=adapter)), "a"))
    assert told["trains"] == said
    assert told["base model"] == "'tiny', never sent"
    assert told["frozen"] == f"SHA-256 {'3' * 64}"
    assert ("peft" in told["requires"]) == ("LoRA" in said)


def test_who_approves_is_told_how_much_of_an_update_leaves() -> None:
    sparse = terms(adapter='[link]\nupload_density = 0.0625\nupload_values = "int8"')
    assert "of it the largest 6.250% as int8" in dict(describe(proposal(sparse), "a"))["you send"]
    assert "of it" not in dict(describe(proposal(terms()), "a"))["you send"]


def test_trying_a_job_without_its_base_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nname = "j"\ntask = "t.py:T"\nbase = "tiny"\n')
    done = CliRunner().invoke(app, ["try", str(tmp_path), "--data", "/", "--dir", str(tmp_path / "none")])
    assert isinstance(done.exception, Refused)
    assert "give --base PATH" in str(done.exception)


def test_check_looks_whether_the_base_is_there(tmp_path: Path) -> None:
    visit = Visit(
        Home(tmp_path), lambda: 0.0, policy=rules(DATA + f'[models.tiny]\npath = "{tmp_path}/tiny"')
    )
    with pytest.raises(HopFailed, match=r"policy.toml \[models.tiny\]: .*/tiny does not exist here"):
        dict(HOPS)["data"](visit)
    (tmp_path / "tiny").mkdir()
    assert f"model tiny = {tmp_path}/tiny" in str(dict(HOPS)["data"](visit))
