"""`python -m benchmarks.revival.wire DIR`: revival over real processes, beside what it is measured against.

A server, ten silo agents and a reviver, all over mutual TLS on this machine; Fashion-MNIST of ANABRANCH_DATA, dealt per
class by Dirichlet(0.1). Silos play machines that are 1, 3 and 10 times slower, by sleeping. Each strategy trains the
same job from the same version 0 until as many updates are merged; then the log is exported, verified and replayed,
and versions are measured on test records. Leaves DIR/wire.json. With the defaults that takes a quarter of an hour.
"""

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.terms import JobFile, Revival, ServerOptimizer
from anabranch.v1 import admin_pb2
from benchmarks.federation import allow_haste
from benchmarks.strategies.data import fashion
from console import submit
from console.client import UNARY_SECONDS, Admin, connect
from console.demo import federation as site
from console.demo import measure, worth
from console.demo.federation import Place
from console.demo.history import read_entries, tell
from console.demo.processes import Children, forget_proxies
from simulator.dealing import deal
from simulator.scenario import Data, Dirichlet

HERE = Path(__file__).parent
SLOWNESS = (1.0,) * 3 + (3.0,) * 4 + (10.0,) * 3
CA2FL = {"strategy": "ca2fl", "buffer": 2, "server_optimizer": ServerOptimizer(name="sgd", lr=0.3)}
ENTRANTS: dict[str, dict[str, Any]] = {  # as docs/choosing-a-strategy.md found them to do best
    "fedbuff": {"strategy": "fedbuff", "buffer": 1, "server_optimizer": ServerOptimizer(name="sgd", lr=0.2)},
    "ca2fl": CA2FL,
    "revive": CA2FL,
}
POINTS = 40  # versions of each entrant that are measured
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Options:
    place: Place
    job: Path
    unit: float  # seconds of the fastest silos' task
    updates: int
    seed: int


def options() -> Options:
    parser = argparse.ArgumentParser(prog="benchmarks.revival.wire", description=__doc__)
    parser.add_argument("directory", type=Path, help="emptied, then written")
    parser.add_argument(
        "--job", type=Path, default=HERE / "job" / "fashion.toml", help="TOML file in its folder"
    )
    parser.add_argument("--unit", type=float, default=3.0, help="seconds of a task of the fastest silos")
    parser.add_argument("--updates", type=int, default=360, help="merged updates of each strategy")
    parser.add_argument("--seed", type=int, default=0, help="of the deal and of version 0")
    given = parser.parse_args()
    return Options(Place(given.directory.resolve()), given.job, given.unit, given.updates, given.seed)


def main() -> None:
    asked = options()
    forget_proxies()
    shutil.rmtree(asked.place.root, ignore_errors=True)
    folder = asked.place.root / "job"
    shutil.copytree(asked.job.parent, folder)
    shutil.copy(HERE / "slow.py", folder)
    silos = [f"silo-{number}" for number in range(len(SLOWNESS))]
    files = {entrant: job_file(folder, asked, entrant) for entrant in ENTRANTS}
    with Children(asked.place.logs) as children:
        set_up(asked, children, silos, files["revive"].training.local_steps)
        with connect(asked.place.admin) as admin:
            site.wait_connected(children, admin, silos)
            jobs = {
                entrant: train(asked.place, children, admin, silos, folder, file)
                for entrant, file in files.items()
            }
    told = conclude(asked, folder, files, jobs)
    (asked.place.root / "wire.json").write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(worth.lines(told)))


def job_file(folder: Path, asked: Options, entrant: str) -> JobFile:
    _, file = submit.read(folder / asked.job.name)
    aggregation = file.aggregation.model_copy(update={**ENTRANTS[entrant], "ema": 0.9})
    changed = {
        "job": file.job.model_copy(update={"name": entrant, "task": "slow.py:Slow", "seed": asked.seed}),
        "silos": file.silos.model_copy(update={"min": len(SLOWNESS)}),
        "aggregation": aggregation,
        "stop": file.stop.model_copy(update={"versions": asked.updates // aggregation.buffer}),
    }
    if entrant == "revive":
        changed["revival"] = file.revival or Revival(synthesis_teachers=10)
    return file.model_copy(update=changed)


def set_up(asked: Options, children: Children, silos: list[str], steps: int) -> None:
    place, ports, records = asked.place, site.free_ports(), asked.place.root / "data"
    fashion(records)
    whole = Data(path=records / "train.npz", deal=Dirichlet(kind="dirichlet", alpha=0.1, least=100))
    dealt = deal(whole, len(silos), asked.seed, records)
    site.make_server(children, place, ports)
    allow_haste(place.server / "server.toml")
    site.serve(children, place, ports)
    site.enrol(children, place, silos)
    for silo, own, slow in zip(silos, dealt, SLOWNESS, strict=True):
        pause = asked.unit * slow / steps
        (place.silo(silo) / "policy.toml").write_text(
            '[run]\nisolation = "allowed-without"\nallow_revival = true\n'
            f"[data.default]\npath = {json.dumps(str(own))}\nparams = {{ seconds_per_batch = {pause} }}\n"
        )
    site.start_agents(children, place, silos)
    site.start_reviver(children, place)


def train(
    place: Place, children: Children, admin: Admin, silos: list[str], folder: Path, file: JobFile
) -> str:
    """Until it has completed; the job."""
    with submit.prepared(folder, file) as prepared:
        job = submit.submit(admin, prepared).job
    site.approve(children, place, silos, job)
    begun = time.monotonic()
    while True:
        children.check()
        reply = admin.stub.ListJobStatus(admin_pb2.ListJobStatusRequest(), timeout=UNARY_SECONDS)
        [status] = [one for one in reply.jobs if one.job == job]
        if status.status == "completed":
            print(f"{file.job.name}: {status.head} versions in {time.monotonic() - begun:.0f} s", flush=True)
            return job
        time.sleep(POLL)


def conclude(asked: Options, folder: Path, files: dict[str, JobFile], jobs: dict[str, str]) -> dict[str, Any]:
    measure.export(asked.place)
    verdicts = {verb: measure.audit(asked.place, verb).exit_code == 0 for verb in ("verify", "replay")}
    log = list(read_entries(asked.place.export))
    found = []
    for entrant, job in jobs.items():
        history = tell(log, job)
        plan = measure.plan(asked.place, folder, files[entrant], [], history)
        last = history.head.number
        some = {last - round(point * last / POINTS) for point in range(POINTS)}
        plan = plan.model_copy(
            update={
                "versions": {number: path for number, path in plan.versions.items() if number in some},
                "averages": {number: path for number, path in plan.averages.items() if number in some},
                "together": str(asked.place.root / "data" / "test.npz"),
            }
        )
        found.append(worth.Entrant(entrant, history, measure.measure(asked.place, plan)))
    return {"unit": asked.unit, "seed": asked.seed, **verdicts, **worth.build(found)}


if __name__ == "__main__":
    main()
