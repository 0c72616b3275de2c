"""The moments between two durable steps, by name.

A fault test kills the process at each of them; ARCHITECTURE.md has one line per gap. In production the hook does
nothing.
"""

from collections.abc import Callable
from enum import StrEnum


class Gap(StrEnum):
    """What is true if the process dies here."""

    SPOOLED = "intake.spooled"  # some bytes have come; the upload resumes behind those that are left
    STORED = (
        "intake.stored"  # the blob is safe but nobody knows it; the silo sends again, the same name is reused
    )
    INTAKE_COMMITTED = (
        "intake.committed"  # the update is in; the register advances at start; the silo gets its receipt
    )
    INTAKE_REGISTERED = "intake.registered"  # the same, only the answer was lost
    FREEZE_COMMITTED = "freeze.committed"  # the step is fixed; a restart computes it
    FREEZE_REGISTERED = "freeze.registered"
    SNAPSHOT_STORED = (
        "aggregation.stored"  # the next version's blobs are safe; a restart computes the same digests
    )
    PUBLISH_COMMITTED = "publish.committed"  # the head has moved
    PUBLISH_REGISTERED = "publish.registered"
    REVIVAL_STORED = "revive.stored"  # a reviver's result is safe but nobody knows it; it is sent again
    REVIVAL_COMMITTED = "revive.committed"  # the next aggregation takes it
    REVIVAL_REGISTERED = "revive.registered"
    RETENTION_COMMITTED = "retention.committed"  # pruned, says the log; the next start removes the files
    RETENTION_REGISTERED = "retention.registered"
    RETENTION_REMOVING = "retention.removing"  # some of the files are gone


Reached = Callable[[str], None]


def nothing(gap: str) -> None:
    """The hook of production."""
