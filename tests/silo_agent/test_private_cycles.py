"""Cycles of jobs with [privacy], by the running agent: nothing trains that is not paid for, nothing is paid for twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anabranch import exits
from anabranch.errors import Corrupt, Unavailable
from anabranch.terms import JobTerms
from anabranch.wire import canonical, dsse, statements
from silo_agent import agent as agent_module
from silo_agent.budget.accounting import Event
from silo_agent.budget.ledger import Charge, Ledger, open_ledger
from silo_agent.budget.witnesses import LOOKED, signed_heads
from silo_agent.check import check, first_failure
from silo_agent.config import Home
from silo_agent.main import app
from silo_agent.outbox import Outbox
from tests.silo_agent.budget.conftest import spend
from tests.silo_agent.running import TRAINS, allow
from tests.silo_agent.world import World

Until = Callable[..., None]

PRIVATE = (
    """
from pathlib import Path
trained = 0
def answer(request, send):
    if request["do"] == "count":
        send({"is": "counted", "units": 100})
        return
    folder = Path(request["out"]).parent
    with open(folder / "asked.jsonl", "a") as file:
        file.write(json.dumps(request["privacy"]) + "\\n")
    if (folder / "fail").exists():
        (folder / "fail").unlink()
        raise ValueError
    if (folder / "hang").exists():
        (folder / "hang").unlink()
        time.sleep(600)
    train(request, send)
"""
    + TRAINS.replace("def answer", "def train")
    + "\nimport time\n"
)
TERMS = """
buffers = "none"
[privacy]
epsilon = 3.0
delta = 1e-4
cycles_max = {cycles}
"""


@pytest.fixture
def offered(world: World, job: Any, interpreter: Path, enrolled: Home) -> Callable[..., JobTerms]:
    """A private job, approved here; the policy's line for its data is added."""

    def offer(cycles: int = 3, ceiling: str = "") -> JobTerms:
        terms = world.offer(job(PRIVATE), training=TERMS.format(cycles=cycles))
        allow(enrolled, interpreter, terms.digest(), extra=ceiling)
        (enrolled.job("tiny-1") / "work").mkdir(parents=True)
        return terms

    return offer


def charges(home: Home) -> list[Charge]:
    return Ledger(home.path, {}).charges()


def asked(home: Home) -> list[dict[str, float]]:
    lines = (home.job("tiny-1") / "work" / "asked.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def all_sent(world: World, home: Home, count: int) -> Callable[[], bool]:
    return lambda: (
        sum(bool(u.decided) for u in world.uploads.values()) == count and not list(Outbox(home.outbox).jobs())
    )


def invoke(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--dir", str(home.path)])


def test_a_private_cycle_is_charged_trained_and_claimed(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered()
    world.lease("l1")
    seen: list[bytes] = []
    real = agent_module.Client.submit
    monkeypatch.setattr(
        agent_module.Client, "submit", lambda self, u, *rest: (seen.append(rest[0]), real(self, u, *rest))[1]
    )
    start()
    until(all_sent(world, enrolled, 1))
    (charge,) = charges(enrolled)
    event = charge.spend.event
    assert (charge.spend.cycle, charge.spend.units, event.steps) == ("l1", 100, 4)
    assert asked(enrolled) == [{"noise_multiplier": event.noise_multiplier, "sample_rate": event.sample_rate}]
    claim = statements.parse_update(dsse.parse_envelope(seen[0]).payload).privacy
    assert claim is not None
    assert (claim.ledger_head, claim.cycles) == (charge.hash, 1)
    assert canonical.from_hexfloat(claim.noise_multiplier) == event.noise_multiplier
    assert signed_heads(enrolled) == {charge.hash: enrolled.job("tiny-1") / "receipts.jsonl"}
    until(lambda: world.left[-1] == 2)
    assert world.left[0] is None


def test_a_spent_silo_releases_the_lease_and_asks_for_no_training_any_more(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    offered(cycles=1)
    world.lease("l1")
    start()
    until(all_sent(world, enrolled, 1))
    world.lease("l2")  # a server that does not heed the number
    until(lambda: world.released)
    until(lambda: len(world.left) > 5)
    assert [(one.lease, one.reason) for one in world.released] == [("l2", "dp_budget")]
    assert world.left[-1] == 0
    assert len(charges(enrolled)) == len(asked(enrolled)) == 1
    row = json.loads(invoke(enrolled, "jobs", "--json").stdout)["jobs"][0]
    assert (row["cycles_left"], row["budget"]) == (0, "exhausted: this silo trains no more for it")
    world.lease("e1", "evaluate")
    until(lambda: "e1" not in [lease.id for lease in world.leases], 30)


def test_the_policys_ceiling_is_above_the_terms(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    """The job's ε fits under it, the first cycle does not any more: said once, not lease after lease."""
    offered(ceiling="[data.records.privacy]\nepsilon = 3.0\ndelta = 0.001\n")
    open_ledger(enrolled).charge(spend("old", job="older-1", event=Event(0.1, 1.0, 200)))
    for number in range(3):
        world.lease(f"l{number}")
    start()
    until(lambda: len(world.released) == 3, 60)
    assert {one.reason for one in world.released} == {"dp_budget"}
    assert world.left[0] is None
    assert set(world.left[1:]) == {0}
    assert len(charges(enrolled)) == 1


def test_a_failed_cycle_is_spent(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    offered()
    (enrolled.job("tiny-1") / "work" / "fail").touch()
    world.lease("l1")
    start()
    until(lambda: [one.reason for one in world.released] == ["task_failed"])
    world.lease("l2")
    until(all_sent(world, enrolled, 1))
    assert [one.spend.cycle for one in charges(enrolled)] == ["l1", "l2"]


def test_a_resumed_lease_is_paid_for(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    offered()
    hang = enrolled.job("tiny-1") / "work" / "hang"
    hang.touch()
    world.lease("l1")
    agent = start()
    until(lambda: len(charges(enrolled)) == 1 and not hang.exists())
    agent.stop()
    start()
    until(all_sent(world, enrolled, 1))
    assert len(charges(enrolled)) == 1
    assert asked(enrolled) == 2 * asked(enrolled)[:1]


def one_cycle(world: World, start: Any, offered: Any, home: Home, until: Until) -> None:
    offered()
    world.lease("l1")
    agent = start()
    until(all_sent(world, home, 1))
    agent.stop()


def test_a_ledger_that_was_begun_anew_stops_the_agent(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    one_cycle(world, start, offered, enrolled, until)
    for path in enrolled.path.glob("ledger*"):
        path.unlink()
    failure = start().ended()
    assert isinstance(failure, Corrupt)
    assert "receipts.jsonl names in an update this silo has signed" in str(failure)


def test_an_older_copy_of_the_whole_directory_stops_the_agent_before_it_trains(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until, tmp_path: Path
) -> None:
    """Nothing at the site knows better; the log does."""
    offered()
    shutil.copytree(enrolled.path, tmp_path / "copy")
    world.lease("l1")
    agent = start()
    until(all_sent(world, enrolled, 1))
    agent.stop()
    (upload,) = world.uploads.values()
    world.jobs[0].newest.CopyFrom(upload.decided.receipt)
    start().stop()  # with its own ledger there is nothing to say
    shutil.rmtree(enrolled.path)
    shutil.copytree(tmp_path / "copy", enrolled.path)
    world.lease("l2")
    failure = start().ended()
    assert isinstance(failure, Corrupt)
    assert "the log's newest entry of this silo in job tiny-1 names" in str(failure)
    assert not list(enrolled.path.glob("ledger*"))


def test_a_damaged_ledger_stops_the_agent_and_is_named_by_every_command(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    one_cycle(world, start, offered, enrolled, until)
    (enrolled.path / "ledger.db").write_bytes(b"not a database" * 1000)
    assert isinstance(start().ended(), Corrupt)
    broken = first_failure(check(enrolled))
    assert broken is not None
    assert (broken.hop, "is damaged" in broken.meaning) == ("privacy", True)
    told = invoke(enrolled, "budget").exception
    assert isinstance(told, Corrupt)
    assert exits.exit_code(told) == exits.CORRUPT


def test_a_clock_that_was_set_back_asks_for_no_work(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_cycle(world, start, offered, enrolled, until)
    before, questions = Ledger.check_clock, len(world.left)

    def yesterday(ledger: Ledger) -> None:
        ledger._clock = lambda: charges(enrolled)[-1].time - 86400
        before(ledger)

    monkeypatch.setattr(Ledger, "check_clock", yesterday)
    world.lease("l2")
    start()
    until(lambda: world.hellos > 1)
    until(lambda: len(world.decided) >= 1)
    assert len(world.left) == questions
    assert len(charges(enrolled)) == 1


def test_the_newest_receipt_is_the_witness(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until
) -> None:
    one_cycle(world, start, offered, enrolled, until)
    path = enrolled.job("tiny-1") / "receipts.jsonl"
    (head,) = signed_heads(enrolled)
    lines = path.read_bytes().splitlines(keepends=True)
    newest = lines.pop()
    path.write_bytes(b"".join([*lines, newest, *lines * 200, b"no receipt\n", lines[0][:20]]))
    assert signed_heads(enrolled) == {head: path}
    path.write_bytes(newest + lines[0] * LOOKED)
    assert signed_heads(enrolled) == {}


# --- the command -----------------------------------------------------------------------------------------------------


def test_budget_tells_balance_history_and_forecast(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until, tmp_path: Path
) -> None:
    one_cycle(world, start, offered, enrolled, until)
    with open(enrolled.policy, "a") as file:
        file.write("[data.records.privacy]\nepsilon = 8.0\ndelta = 0.001\n")
    picture = tmp_path / "budget.svg"
    done = invoke(enrolled, "budget", "--json", "--picture", str(picture))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    (records,), (charge,) = document["bindings"], charges(enrolled)
    assert (document["events"], document["head"]) == (1, charge.hash)
    (tiny,) = records["jobs"]
    assert (tiny["cycles"], tiny["cycles_max"], tiny["cycles_left"]) == (1, 3, 2)
    assert 0 < records["epsilon_pld"] <= records["epsilon"] < 8
    assert records["history"][0]["units"] == 100
    assert "<svg" in picture.read_text()
    first = picture.read_bytes()
    invoke(enrolled, "budget", "--picture", str(picture))
    assert picture.read_bytes() == first
    said = invoke(enrolled, "budget", "records").output
    assert "of 8 at delta 0.001 for each example" in said
    assert "1 of 3" in said
    assert canonical.utc(charge.time)[:19] in said


def test_budget_without_a_history(enrolled: Home) -> None:
    assert "no private job has used data here" in invoke(enrolled, "budget").output
    with open(enrolled.policy, "a") as file:
        file.write('[data.records]\npath = "/srv"\n[data.records.privacy]\nepsilon = 8.0\ndelta = 0.001\n')
    assert "records: epsilon 0 of 8" in invoke(enrolled, "budget").output
    error = invoke(enrolled, "budget", "other").exception
    assert error is not None
    assert "no private job has used data 'other'" in str(error)
    assert exits.exit_code(error) == exits.FAILED
    assert not list(enrolled.path.glob("ledger*"))


def test_what_stands_in_the_outbox_and_among_the_refused_are_witnesses(
    world: World, start: Any, offered: Any, enrolled: Home, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered()
    world.lease("l1")

    def later(*_: Any, **__: Any) -> str:
        raise Unavailable("the server is away")

    monkeypatch.setattr("silo_agent.submit.Sender.deliver", later)
    agent = start()
    until(lambda: list(enrolled.outbox.glob("[!.]*")))
    agent.stop()
    (charge,) = charges(enrolled)
    (entry,) = enrolled.outbox.iterdir()
    assert signed_heads(enrolled) == {charge.hash: entry / "envelope.json"}
    (enrolled.path / "refused").mkdir()
    shutil.move(entry, enrolled.path / "refused" / entry.name)
    assert signed_heads(enrolled) == {charge.hash: enrolled.path / "refused" / entry.name / "envelope.json"}
