"""How fast something happens, from the newest few times it did."""

from collections.abc import Sequence

NEWEST = 21  # times that are looked at


def pace(newest_first: Sequence[float], since: float, now: float) -> float:
    """Per second, over the newest NEWEST times after `since` (a start or a resume), measured to now.

    Measured to now, so that a job that has come to a halt is seen to slow down.
    """
    recent = [at for at in newest_first[:NEWEST] if at >= since]
    begin = recent[-1] if len(recent) == NEWEST else since
    counted = len(recent) - 1 if len(recent) == NEWEST else len(recent)
    return counted / (now - begin) if counted and now > begin else 0.0
