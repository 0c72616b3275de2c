"""The silo agent: it runs at the data owner's site, dials out, and obeys the site's policy before any job.

`from silo_agent import federated` is the one line of this package that a user's own training script imports. It is
resolved on first use, because it needs torch and the agent daemon, which imports this package too, must not.
"""

from typing import TYPE_CHECKING, Any

from silo_agent.training.inputs import Images, Texts

if TYPE_CHECKING:
    from silo_agent.training.script import federated

__all__ = ["Images", "Texts", "federated"]


def __getattr__(name: str) -> Any:
    if name == "federated":
        from silo_agent.training.script import federated

        return federated
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
