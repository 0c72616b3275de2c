"""One run of one or two jobs that ends when they have reached their targets."""

import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from anabranch.terms import parse_job_file
from server.core.allocation import Allocation
from simulator.engine import Run, Trained, silo_names
from simulator.flat import Flat
from simulator.memory import Memory
from simulator.rows import Rows
from simulator.run import Told, Trainers, prepared
from simulator.scenario import read_scenario

HERE = Path(__file__).parent
TARGETS = {"clothes": ("accuracy", 0.76), "income": ("balanced", 0.74)}
LOOKS = 5
WAYS = {
    "clothes alone": (("clothes",), "turns"),
    "income alone": (("income",), "turns"),
    "by turns": (("clothes", "income"), "turns"),
    "fedast-static": (("clothes", "income"), "fedast-static"),
    "fedast": (("clothes", "income"), "fedast"),
}


@dataclass
class Goals:
    """As `engine.Trainer`; a job whose target is reached ends there."""

    trainers: Trainers
    server: Memory
    reached: dict[str, float] = field(default_factory=dict)  # virtual seconds
    looks: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=LOOKS)))

    def train(self, job: str, silo: int, cycle: str, base: Flat, version: int, steps: int) -> Trained:
        return self.trainers.train(job, silo, cycle, base, version, steps)

    def evaluate(
        self, job: str, silo: int, cycle: str, parameters: Flat, version: int, split: str
    ) -> tuple[Mapping[str, float], int]:
        return self.trainers.evaluate(job, silo, cycle, parameters, version, split)

    def measure(self, job: str, parameters: Flat, split: str) -> tuple[Mapping[str, float], int]:
        found, records = self.trainers.measure(job, parameters, split)
        metric, target = TARGETS[job]
        self.looks[job].append(found[metric])
        if len(self.looks[job]) == LOOKS and mean(self.looks[job]) >= target:
            self.reached[job] = self.server.now
            self.server.jobs[job].status = "completed"
        return found, records


@dataclass(frozen=True)
class Played:
    way: str
    seed: int
    reached: dict[str, float]
    updates: dict[str, int]
    scores: dict[str, float | None]


def play(place: Path, way: str, seed: int) -> Played:
    names, rule = WAYS[way]
    scenario = read_scenario(place / "scenario.toml").model_copy(update={"seed": seed})
    rows, silos = Rows(), silo_names(scenario)
    with tempfile.TemporaryDirectory() as scratch:
        ready = {}
        for name in names:
            file = parse_job_file((HERE / f"{name}.toml").read_text())
            ready[name] = prepared(Told(file, HERE / "tasks"), scenario, Path(scratch) / name)
        server = Memory([planned for planned, _ in ready.values()], silos, rows, Allocation(rule))
        goals = Goals(Trainers({name: trainer for name, (_, trainer) in ready.items()}), server)
        Run(scenario, server, goals, rows).play()
    scores = {name: server.jobs[name].score for name in names}
    return Played(way, seed, goals.reached, dict(Counter(rows.updates["job"])), scores)
