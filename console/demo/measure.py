"""After training: the exported log, the auditor's judgement of it, and what the exported models are worth.

Each is a program of its own, run here only to collect its answer.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from anabranch.errors import Reason, Refused
from anabranch.terms import JobFile
from console.demo.federation import Place
from console.demo.history import History
from console.demo.plan import Plan, SiloPlan
from console.demo.processes import environment, program, python, tail
from console.demo.report import Verdict

LOCAL_FACTOR = 2  # local-only training gets this many times the steps of the busiest silo
LOCAL_LEAST = 2000  # steps, at least
LOOKS = 20  # points of a local-only training at which it is evaluated
TUNE_STEPS = 40
TUNE_RATE = 0.1
PROGRAM_SECONDS = 900.0  # of the patience with one of them, on a machine that has other work too


def export(place: Place) -> None:
    """Write the audit export. Raises Refused with the program's own words when it fails."""
    argv = [program("anabranch-server"), "export", str(place.server), "-o", str(place.export)]
    _run(argv, place.logs / "server-export.log", "the export of the log")


def audit(place: Place, verb: str) -> Verdict:
    """`anabranch-audit verify` or `replay` on the export; a failure is a verdict too.

    The log's key is the one pinned when the federation was made, not the one the export brings along.
    """
    command = ["anabranch-audit", verb, short(place.export), "--vkey", short(place.admin / "federation.json")]
    argv = [program(command[0]), *command[1:], "--json"]
    done = subprocess.run(argv, capture_output=True, env=environment(), timeout=PROGRAM_SECONDS, check=False)
    (place.logs / f"audit-{verb}.log").write_bytes(done.stdout + done.stderr)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {"error": {"message": done.stderr.decode("utf-8", "replace").strip() or "no answer"}}
    return Verdict(" ".join(command), done.returncode, document)


def plan(place: Place, folder: Path, file: JobFile, silos: Sequence[str], history: History) -> Plan:
    """What to measure: every published version and average, and what each silo gets alone."""

    def stored(digest: str) -> str:
        return str(place.export / "objects" / digest)

    busiest = max((len(history.of(silo)) for silo in silos), default=0) * file.training.local_steps
    return Plan(
        folder=str(folder),
        file=file,
        initial=stored(history.versions[0].parameters_sha256),
        model=stored(history.released),
        versions={version.number: stored(version.parameters_sha256) for version in history.versions},
        averages={v.number: stored(v.ema_sha256) for v in history.versions if v.ema_sha256},
        silos=tuple(SiloPlan(name=silo, data=str(place.data(silo))) for silo in silos),
        together=str(place.together),
        steps=max(LOCAL_LEAST, LOCAL_FACTOR * busiest) // LOOKS * LOOKS,
        looks=LOOKS,
        tune_steps=TUNE_STEPS,
        tune_learning_rate=TUNE_RATE,
    )


def measure(place: Place, asked: Plan) -> Mapping[str, Any]:
    """Run `console.demo.local`, which loads torch, in processes of its own: one per core, each for some silos."""
    dealt = shares(asked, os.cpu_count() or 1)
    with ThreadPoolExecutor(len(dealt)) as pool:
        found = list(pool.map(lambda share: _measure(place, *share), enumerate(dealt)))
    return {part: {key: value for one in found for key, value in one[part].items()} for part in found[0]}


def shares(asked: Plan, workers: int) -> list[Plan]:
    """The plan dealt to `workers`: the versions go to the first, silos, if there are any, to each in turn."""
    nothing: dict[str, Any] = {"versions": {}, "averages": {}}
    return [
        asked.model_copy(update={"silos": asked.silos[worker::workers], **(nothing if worker else {})})
        for worker in range(max(1, min(workers, len(asked.silos))))
    ]


def _measure(place: Place, worker: int, asked: Plan) -> Mapping[str, Any]:
    question, answer = (place.root / f"{name}-{worker}.json" for name in ("plan", "measured"))
    question.write_text(asked.model_dump_json(indent=1))
    log = place.logs / f"measure-{worker}.log"
    _run(python("console.demo.local", str(question), str(answer)), log, "the evaluation")
    measured: Mapping[str, Any] = json.loads(answer.read_bytes())
    return measured


def short(path: Path) -> str:
    """Relative to the working directory when it lies inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(argv: Sequence[str], log: Path, what: str) -> None:
    try:
        with log.open("wb") as out:
            done = subprocess.run(
                argv,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(),
                timeout=PROGRAM_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise Refused(Reason.TASK_HUNG, f"{what} did not finish in {PROGRAM_SECONDS:.0f} s") from error
    if done.returncode:
        raise Refused(Reason.TASK_FAILED, f"{what} failed:\n{tail(log)}")
