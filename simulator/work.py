"""Many runs at once: each in one process with one thread, here or as a task of a Ray cluster.

Whoever computes, a run comes back as the bytes of its files.
"""

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from anabranch.errors import AnabranchError, Reason, Refused, Unavailable
from silo_agent.training.isolation import SAME_HASHES
from silo_agent.training.task import Garbage
from simulator.results import Files, encoded, files
from simulator.run import Told, play
from simulator.scenario import Scenario

FAILED = "failed.json"  # the only file of a run that came to no end
DIVERGED = ("LossNotFinite", "NotFinite", "MetricsNotNumbers")
EVERY = 0.5  # seconds between two words of a run about how far it is
TRACEBACK_CHARACTERS = 4000
# What a process has to know before it starts: one thread for each library, and the order of sets.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **SAME_HASHES,
}

Done = Callable[[int, Files], None]  # the run of this number has ended
Progress = Callable[[int, float], None]  # it is at this virtual time, in seconds


@dataclass(frozen=True)
class Plan:
    """One run to be made."""

    jobs: tuple[Told, ...]
    scenario: Scenario
    like: Path | None = None  # an audit export whose order it takes
    keep_failure: bool = False  # training that leaves the numbers is a result as well


class Stopped(Exception):
    """Nobody waits for this run any more."""


def run(plan: Plan, told: Callable[[float], None] = lambda now: None) -> Files:
    """Raises Refused for what does not fit together, and TASK_FAILED for what the job's code raised."""
    try:
        return files(play(plan.jobs, plan.scenario, told, plan.like))
    except (AnabranchError, Stopped) as error:
        if plan.keep_failure and isinstance(error, Garbage) and error.kind in DIVERGED:
            return {FAILED: encoded({"seed": plan.scenario.seed, "message": str(error)})}
        raise
    except Exception as error:
        folders = tuple(str(job.folder) for job in plan.jobs)
        if not any(frame.filename.startswith(folders) for frame in traceback.extract_tb(error.__traceback__)):
            raise
        told_by = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        raise Refused(
            Reason.TASK_FAILED, f"the job's code failed with seed {plan.scenario.seed}:\n{told_by}"
        ) from error


def by_processes(plans: Sequence[Plan], processes: int, done: Done, progress: Progress) -> None:
    """Returns when all have ended. When anything is raised, here or by a run, the others are stopped first."""
    context = multiprocessing.get_context("spawn")
    news, stop = context.Queue(), context.Event()
    with _same_everywhere(), ProcessPoolExecutor(processes, context, _begin, (news, stop)) as pool:
        try:
            numbers = {pool.submit(_work, number, plan): number for number, plan in enumerate(plans)}
            for future in _as_they_end(set(numbers), news, progress):
                done(numbers.pop(future), future.result())  # and no longer holds its bytes
        except BrokenProcessPool as error:
            raise Unavailable(
                "the process of a run was ended from outside, perhaps for want of memory: give fewer --processes"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _as_they_end(
    waiting: set["Future[Files]"], news: "multiprocessing.Queue[tuple[int, float]]", progress: Progress
) -> Iterator["Future[Files]"]:
    while waiting:
        ended, waiting = wait(waiting, EVERY, FIRST_COMPLETED)
        while True:
            try:
                progress(*news.get_nowait())
            except queue.Empty:
                break
        yield from ended


@contextmanager
def _same_everywhere() -> Iterator[None]:
    """What a new process and its libraries read before any code of ours runs there."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_shared: dict[str, Any] = {}  # of a process that makes runs


def _begin(news: "multiprocessing.Queue[tuple[int, float]]", stop: Any) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # rows say it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of the terminal; the parent decides
    news.cancel_join_thread()  # words about progress keep nobody from ending
    _shared.update(news=news, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int, plan: Plan) -> Files:
    last = 0.0

    def told(now: float) -> None:
        nonlocal last
        if time.monotonic() - last < EVERY:
            return
        last = time.monotonic()
        if _shared["stop"].is_set():
            raise Stopped
        _shared["news"].put((number, now))

    return run(plan, told)
