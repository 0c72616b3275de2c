"""What is run: the demo's options, and the job files that follow from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anabranch.terms import Aggregation, JobFile, Revival, Strategy
from console import submit

Choice = Literal[Strategy, "revive"]  # revive: REVIVED with a reviver beside it
REVIVED: Strategy = "ca2fl"
BESIDE: tuple[Choice, ...] = ("fedbuff", REVIVED)  # what revival is measured against, on the same silos
SLOWER = (10.0, 3.0)  # the last silo, and the one before it
AVERAGED = 40  # versions; a shorter run's average would still hold much of version 0


@dataclass(frozen=True)
class Settings:
    silos: int
    seed: int
    strategy: Choice
    versions: int
    kill_server_at: int | None
    directory: Path
    keep: bool

    @property
    def revives(self) -> bool:
        return self.strategy == "revive"

    @property
    def entrants(self) -> tuple[Choice, ...]:
        """One job each, one after another; the report is about the last."""
        return (*BESIDE, self.strategy) if self.revives else (self.strategy,)

    @property
    def seconds_per_batch(self) -> float:
        """Of a silo at the usual speed. A reviver shares these cores, and has to keep up with the fastest silo."""
        return 0.03 if self.revives else 0.01


def slowness(silos: int) -> list[float]:
    """How many times slower than usual each silo is; with one silo, none is."""
    slow = SLOWER if silos > 1 else ()
    return [1.0] * (silos - len(slow)) + list(reversed(slow))


def job_file(folder: Path, settings: Settings, entrant: Choice) -> JobFile:
    """The demo's job with what the command line asks for, as this entrant plays it."""
    _, file = submit.read(folder)
    strategy: Strategy = REVIVED if entrant == "revive" else entrant
    name = f"{file.job.name}-{entrant}" if settings.revives else file.job.name
    return file.model_copy(
        update={
            "job": file.job.model_copy(update={"name": name, "seed": settings.seed}),
            "silos": file.silos.model_copy(update={"min": settings.silos}),
            "aggregation": Aggregation(
                **{
                    **file.aggregation.model_dump(exclude={"buffer"}),
                    "strategy": strategy,
                    **_own_keys(strategy, settings.silos),
                    "ema": file.aggregation.ema if settings.versions >= AVERAGED else None,
                }
            ),
            "revival": _revival(settings.versions) if entrant == "revive" else None,
            "stop": file.stop.model_copy(update={"versions": settings.versions}),
        }
    )


def _revival(versions: int) -> Revival:
    """It begins earlier than usual: a demo's job is short. Few silos: all of them teach the generator."""
    return Revival(freeze=versions // 20, warmup=versions // 10, synthesis_teachers=10)


def _own_keys(strategy: Strategy, silos: int) -> dict[str, Any]:
    """What only this strategy reads, for tasks of 20 steps that take between 0.2 and 2 seconds."""
    match strategy:
        case "fedbuff" | "ca2fl":
            return {"buffer": min(3, silos)}
        case "afl-dw":
            return {"s_max": 0.75 * silos}
        case "fedfix":
            return {"interval": "1s"}
        case "fedcompass":
            return {"local_steps_min": 4}
        case "fedavg" | "fedasync":
            return {}
