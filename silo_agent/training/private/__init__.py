"""Training with differential privacy: what `[privacy]` of a job file makes of a step of managed training.

`mechanism` takes a step; `noise` is where all of its chance comes from; `units` says whose records are whose; `clipping`
is Opacus'; `gate` and `probe` decide whether a model can be trained so at all.
"""

from silo_agent.training.task import Garbage


def require() -> None:
    """Raises Garbage where Opacus is missing."""
    try:
        import opacus  # noqa: F401 - before any record is read
    except ModuleNotFoundError as error:
        raise Garbage(
            "NoOpacus",
            f"the job trains with privacy, which needs {error.name}: pip install 'anabranch[privacy]'",
        ) from error
