from datetime import datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from silo_agent.policy import (
    TEMPLATE,
    Policy,
    admit,
    admit_isolation,
    open_now,
    parse_bytes,
    parse_policy,
    parse_window,
)

BOUND = '[data.default]\npath = "/srv/data"\n'


def terms(data: str = "default") -> JobTerms:
    file = parse_job_file(f'[job]\nname = "tiny"\ntask = "task.py:Tiny"\ndata = "{data}"')
    return JobTerms(file=file, archive_sha256="0" * 64, initial_sha256="1" * 64, manifest_sha256="2" * 64)


def test_the_policy_that_enrolment_writes_denies_every_job() -> None:
    rules = parse_policy(TEMPLATE, "policy.toml")
    assert rules == Policy()
    with pytest.raises(Refused, match=r"\[data\.default\]") as refusal:
        admit(rules, terms())
    assert refusal.value.code is Reason.POLICY


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[run]\nisolaton = 'required'", "run.isolaton"),
        ("[run]\nisolation = 'maybe'", "run.isolation"),
        ("[run]\nmax_update_bytes = '1 GiB of'", "run.max_update_bytes"),
        ("[run]\nhours = ['20-6']", "run.hours"),
        ("[run]\nhours = ['08:00-08:00']", "run.hours"),
        ("[run]\ngpus = [-1]", "run.gpus"),
        ("[run]\nprocesses = 0", "run.processes"),
        ("[data.Bad]\npath = '/x'", "data"),
        ("[data.default]\npath = 'relative'", "absolute"),
        ("[approve]\nterms = ['abc']", "approve.terms"),
        ("[data.default]\npath = '/x'\n[data.default.privacy]\nepsilon = 0\ndelta = 1e-5", "privacy.epsilon"),
        (
            "[data.default]\npath = '/x'\n[data.default.privacy]\nepsilon = inf\ndelta = 1e-5",
            "privacy.epsilon",
        ),
        ("[data.default]\npath = '/x'\n[data.default.privacy]\nepsilon = 1\ndelta = 1", "privacy.delta"),
        (
            "[data.default]\npath = '/x'\n[data.default.privacy]\nepsilon = 1\ndelta = 0.1\nunits = []",
            "privacy.units",
        ),
        ("unknown = 1", "unknown"),
        ("[run", "TOML"),
    ],
)
def test_a_wrong_policy_is_refused_by_name_and_says_that_nothing_runs(text: str, names: str) -> None:
    with pytest.raises(Refused, match="nothing runs") as refusal:
        parse_policy(text, "policy.toml")
    assert names in str(refusal.value)
    assert refusal.value.code is Reason.POLICY


def test_a_bound_data_set_admits_the_job_that_asks_for_it_and_no_other() -> None:
    rules = parse_policy(BOUND + "params = { site = 'north', rate = 0.5 }", "policy.toml")
    assert admit(rules, terms()).data.params == {"site": "north", "rate": 0.5}
    with pytest.raises(Refused, match="asks for data 'other' and this site binds default"):
        admit(rules, terms("other"))


CEILING = "[data.default.privacy]\nepsilon = 5.0\ndelta = 1e-5\n"


def private(**changes: object) -> JobTerms:
    said = {"unit": "example", "epsilon": 3.0, "delta": 1e-5, "cycles_max": 4} | changes
    lines = "\n".join(
        f'{key} = "{value}"' if key == "unit" else f"{key} = {value}" for key, value in said.items()
    )
    file = parse_job_file(
        f'[job]\nname = "tiny"\ntask = "task.py:Tiny"\n[training]\nbuffers = "none"\n[privacy]\n{lines}\n'
    )
    return terms().model_copy(update={"file": file})


def test_a_ceiling_admits_what_fits_under_it() -> None:
    rules = parse_policy(BOUND + CEILING, "policy.toml")
    admit(rules, private())
    admit(rules, private(epsilon=5.0, unit="subject"))
    admit(parse_policy(BOUND + CEILING + "required = false", "policy.toml"), terms())
    admit(parse_policy(BOUND, "policy.toml"), private(epsilon=50.0))  # no ceiling, no word


@pytest.mark.parametrize(
    ("extra", "asked", "says"),
    [
        ("", terms(), "required = true: job tiny has no"),
        ('units = ["subject"]', private(), "protects each example"),
        ("", private(epsilon=5.1), "epsilon = 5.0: job tiny alone asks for 5.1"),
        ("", private(delta=1e-4), "delta = 1e-05: job tiny asks for 0.0001"),
    ],
)
def test_terms_that_do_not_fit_under_a_ceiling(extra: str, asked: JobTerms, says: str) -> None:
    with pytest.raises(Refused, match=r"\[data\.default\.privacy\]") as refusal:
        admit(parse_policy(BOUND + CEILING + extra, "policy.toml"), asked)
    assert says in str(refusal.value)
    assert refusal.value.code is Reason.POLICY


def test_records_under_two_names_would_have_two_budgets() -> None:
    other = '[data.other]\npath = "/srv/data"\n'
    parse_policy(BOUND + other, "policy.toml")
    for text in (BOUND + CEILING + other, other + BOUND + CEILING):
        with pytest.raises(Refused, match=r"bound as .* as well"):
            parse_policy(text, "policy.toml")


def test_size_is_a_rule_of_the_site() -> None:
    rules = parse_policy(BOUND + "[run]\nmax_update_bytes = '1MiB'", "policy.toml")
    admit(rules, terms(), 1 << 20)
    with pytest.raises(Refused, match="max_update_bytes"):
        admit(rules, terms(), (1 << 20) + 1)


def test_missing_isolation_is_refused_unless_the_policy_says_otherwise() -> None:
    with pytest.raises(Refused, match="NOT ISOLATED"):
        admit_isolation(Policy(), False, "NOT ISOLATED: no Landlock")
    admit_isolation(Policy(), True, "")
    admit_isolation(parse_policy("[run]\nisolation = 'allowed-without'", ""), False, "")


@given(st.times(), st.times(), st.times())
def test_a_window_and_its_complement_cover_the_day(start: time, end: time, now: time) -> None:
    start, end = start.replace(second=0, microsecond=0), end.replace(second=0, microsecond=0)
    if start == end:
        return
    window, rest = f"{start:%H:%M}-{end:%H:%M}", f"{end:%H:%M}-{start:%H:%M}"
    moment = datetime.combine(datetime(2026, 11, 20), now)
    inside, outside = (open_now(parse_policy(f"[run]\nhours = ['{w}']", ""), moment) for w in (window, rest))
    assert inside != outside


def test_night_hours_span_midnight() -> None:
    rules = parse_policy("[run]\nhours = ['20:00-06:00']", "")
    midnight = datetime(2026, 11, 20)
    open_ = [hour for hour in range(24) if open_now(rules, midnight + timedelta(hours=hour))]
    assert open_ == [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]
    assert open_now(Policy(), midnight)
    assert parse_window("08:00-09:30") == (time(8), time(9, 30))


@pytest.mark.parametrize(
    ("text", "size"), [("1GiB", 2**30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("0B", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size
