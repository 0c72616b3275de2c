"""What a silo is doing for one job, in one word, as an operator asks it."""

from typing import Literal

SILENCE = 8.0  # seconds without a word; agents speak every three

State = Literal[
    "undecided",
    "denied",
    "withdrawn",
    "lost",  # silent while it holds a lease
    "absent",  # not connected, and nobody waits for it
    "training",
    "evaluating",
    "backing off",
    "idle",
]


def silent(last_seen: float, connected: bool, now: float) -> bool:
    """`last_seen` is 0.0 for a silo that was not heard since the server started."""
    return now - last_seen > SILENCE if last_seen else not connected


def doing(decision: str, is_silent: bool, connected: bool, task: str, backing_off: bool) -> State:
    """`task` is the kind of the silo's open lease, or ""."""
    if decision != "approved":
        return "denied" if decision == "denied" else "withdrawn" if decision == "withdrawn" else "undecided"
    if task and is_silent:
        return "lost"
    if task:
        return "training" if task == "train" else "evaluating"
    if not connected:
        return "absent"
    return "backing off" if backing_off else "idle"
