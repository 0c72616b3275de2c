"""Jobs that share a site: whose turn it is, as a rule in virtual time, and as threads take it."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silo_agent.policy import parse_policy
from silo_agent.turns import Rota, Turns


@dataclass
class Site:
    """Jobs with cycles of one length each, as their workers treat the rota; idle for a while after each cycle."""

    rota: Rota
    cycles: dict[str, float]  # seconds
    idle: dict[str, float] = field(default_factory=dict)  # seconds between two cycles
    now: float = 0.0
    until: dict[str, float] = field(default_factory=dict)  # when a job's cycle ends
    back: dict[str, float] = field(default_factory=dict)  # when an idle job has something to do again
    worked: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    hungry: dict[str, float] = field(default_factory=dict)  # since when a job waits for its turn
    longest_wait: float = 0.0

    def run(self, end: float) -> None:
        while self.now < end:
            for job in 2 * sorted(
                self.cycles
            ):  # who has a turn looks every moment, also after another began to wait
                self._look(job)
            self.rota.admit(self.now)
            for job in sorted(self.cycles):
                if self.rota.has(job) and job not in self.until and self.back.get(job, 0.0) <= self.now:
                    if job in self.hungry:
                        self.longest_wait = max(self.longest_wait, self.now - self.hungry.pop(job))
                    self.until[job] = self.now + self.cycles[job]
            if self.rota.at_once is not None:
                assert len(self.until) <= self.rota.at_once
            self.now = min([*self.until.values(), *(t for t in self.back.values() if t > self.now)])

    def _look(self, job: str) -> None:
        if self.until.get(job, self.now + 1) <= self.now:
            del self.until[job]
            self.rota.work(job, self.cycles[job])
            self.worked[job] += self.cycles[job]
            self.back[job] = self.now + self.idle.get(job, 0.0)
        if job in self.until:
            return
        idle = self.back.get(job, 0.0) > self.now
        if self.rota.has(job) and self.rota.must_go(job, idle, self.now):
            self.rota.leave(job)
        if not idle and not self.rota.has(job):
            self.rota.wait(job)
            self.hungry.setdefault(job, self.now)


lengths = st.lists(st.integers(10, 500).map(float), min_size=2, max_size=5)
few = settings(max_examples=40, deadline=None)


@few
@given(lengths, st.sampled_from([0.0, 10.0, 60.0]))
def test_jobs_get_the_same_time_whatever_their_cycles_take(cycles: list[float], turn: float) -> None:
    site = Site(Rota(1, turn), {f"job-{n}": length for n, length in enumerate(cycles)})
    site.run(30_000.0)
    slack = 2 * max(cycles) + turn
    assert max(site.worked.values()) - min(site.worked[job] for job in site.cycles) <= slack


@few
@given(lengths, st.integers(1, 3), st.sampled_from([0.0, 60.0]), st.data())
def test_nobody_starves(cycles: list[float], at_once: int, turn: float, data: st.DataObject) -> None:
    """Also beside jobs that are often idle and come back."""
    jobs = {f"job-{n}": length for n, length in enumerate(cycles)}
    idle = {job: float(data.draw(st.sampled_from([0, 0, 3, 900]))) for job in jobs}
    site = Site(Rota(at_once, turn), jobs, idle)
    site.run(20_000.0)
    assert site.longest_wait <= len(cycles) * 3 * (max(cycles) + turn)


def test_a_turn_that_is_held_idle_is_given_up_for_who_comes() -> None:
    site = Site(Rota(1, 0.0), {"one": 10.0, "two": 10.0}, {"one": 900.0, "two": 900.0})
    site.run(20_000.0)
    assert site.longest_wait <= 10.0


def test_being_idle_saves_nothing_up() -> None:
    """A job that comes back after ten hours does not shut the other out for ten hours."""
    site = Site(Rota(1, 60.0), {"old": 30.0})
    site.run(36_000.0)
    site.cycles["new"] = 30.0
    site.run(36_000.0 + 600)
    assert 200 <= site.worked["old"] - 36_000.0 <= 330
    assert 270 <= site.worked["new"] <= 400


def test_a_turn_is_not_given_up_while_it_is_young() -> None:
    """Starting a training process takes seconds; short cycles must not pay for it each time."""
    rota = Rota(1, 60.0)
    rota.wait("a")
    rota.wait("b")
    rota.admit(0.0)
    assert rota.has("a")
    rota.work("a", 10.0)
    assert not rota.must_go("a", False, 10.0)
    assert rota.must_go("a", True, 10.0)  # idle: room for who has something to do
    rota.work("a", 50.0)
    assert rota.must_go("a", False, 60.0)


def test_without_a_limit_everybody_works() -> None:
    site = Site(Rota(None), {"a": 5.0, "b": 7.0, "c": 11.0})
    site.run(1000.0)
    assert site.longest_wait == 0.0


def test_a_stricter_policy_is_followed_between_two_cycles() -> None:
    rota = Rota(None)
    for job in ("a", "b", "c"):
        rota.wait(job)
    rota.admit(0.0)
    rota.at_once = 2
    assert rota.must_go("a", False, 1.0)
    rota.leave("a")
    assert not rota.must_go("b", False, 1.0)


@pytest.mark.parametrize("text", ["jobs_at_once = 0", 'turn = "2d"', 'turn = "soon"', 'jobs_at_once = "all"'])
def test_a_policy_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"policy.toml: run\.(jobs_at_once|turn)"):
        parse_policy(f"[run]\n{text}\n", "policy.toml")


def test_threads_take_turns() -> None:
    turns, at_work, most, done = Turns(), 0, 0, dict.fromkeys("abc", 0)
    turns.allow(1, 0.0)
    lock, stop = threading.Lock(), threading.Event()

    def worker(job: str) -> None:
        nonlocal at_work, most
        while not stop.is_set():
            if turns.called(job, idle=False):
                turns.give(job)
            if not turns.take(job, stop.is_set):
                break
            with turns.working(job):
                with lock:
                    at_work += 1
                    most = max(most, at_work)
                time.sleep(0.002)
                with lock:
                    at_work -= 1
            done[job] += 1
        turns.forget(job)

    threads = [threading.Thread(target=worker, args=(job,)) for job in done]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while min(done.values()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert most == 1
    assert min(done.values()) >= 5
