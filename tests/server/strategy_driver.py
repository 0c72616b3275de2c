"""Plays one history of a job, from wherever it stands, and dies by SIGKILL at gap GAP while it makes the third version.

python -m tests.server.strategy_driver DIRECTORY CASE GAP

Four silos: c is slow, b withdraws and approves again, d approves when two versions are made.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from sqlalchemy import select

from anabranch.rules.profile import NUMERIC_PROFILE
from anabranch.terms import JobTerms
from anabranch.tlog.checkpoint import open_checkpoint
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteVerifier
from anabranch.wire import canonical
from anabranch.wire.tensors import Manifest, TensorSpec, write_tensors
from server.audit.log import newest_checkpoint
from server.state import records, tables
from server.state.writer import Transaction
from tests.server.harness import ADMIN, ORIGIN, FakeSilo, Server, fake_silo

LAYOUT = Manifest(
    (
        TensorSpec("layer.bias", (3,), "trainable"),
        TensorSpec("layer.weight", (4, 3), "trainable"),
        TensorSpec("norm.mean", (3,), "buffer"),
    )
)
CASES = {
    "fedasync": 'strategy = "fedasync"\n',
    "fedasync-power": 'strategy = "fedasync"\nstaleness_exponent = 0.3\nema = 0\n'
    "server_optimizer = { momentum = 0.5 }\n",
    "fedasync-hinge": 'strategy = "fedasync"\nhinge = { slope = 3.0, until = 1 }\n',
    "afl-dw": 'strategy = "afl-dw"\ns_max = 2.5\nserver_optimizer = { name = "yogi", lr = 0.1 }\n',
    "ca2fl": 'strategy = "ca2fl"\nbuffer = 2\n',
    "ca2fl-adamw": 'strategy = "ca2fl"\nbuffer = 2\n'
    'server_optimizer = { name = "adamw", lr = 0.9, delay_threshold = 0 }\n',
    "fedcompass": 'strategy = "fedcompass"\nlocal_steps_min = 4\nstaleness_exponent = 0.5\n',
    "fedfix": 'strategy = "fedfix"\ninterval = "1m"\nmin_arrival = 0.6\n',
}
EVENTS = [
    *("hold c", "send a", "send b", "advance"),
    *("send a", "deliver c", "advance"),
    *("withdraw b", "approve d", "send a", "send d", "advance"),
    *("approve b", "send b", "send c", "advance"),
]
KILLED = 11  # the event the process dies in
START, PACE = 1_800_000_000.0, 40.0  # seconds; between two events


def begin(server: Server) -> None:
    vkey = server.signer.vkey
    detail = {"origin": ORIGIN, "vkey": vkey, "ca_pins": [], "numeric_profile": NUMERIC_PROFILE}
    target = Target(kind="log", id=ORIGIN)
    server.core.writer.run(
        lambda tx: tx.log("log.genesis", actor=server.core.observer, target=target, detail=detail)
    )


def seen(server: Server) -> dict[str, object]:
    """The silo's view of the log."""
    with server.core.reader.connect() as connection:
        _, note = newest_checkpoint(connection)
    checkpoint = open_checkpoint(note, NoteVerifier.from_vkey(server.signer.vkey), ORIGIN)
    return {"size": checkpoint.size, "root": checkpoint.root.hex()}


def enrol(server: Server, name: str) -> FakeSilo:
    """As the server logs it, so that an auditor knows the keys."""
    silo = server.enrol(name)

    def log(tx: Transaction) -> None:
        target, expires = Target(kind="silo", id=name), canonical.utc(tx.now + 3600)
        invited = {"silo": name, "token_id": f"t-{name}", "expires": expires}
        tx.log("silo.invited", actor=ADMIN, target=target, detail=invited)
        keys = [("update", silo.key), ("approver", silo.approver)]
        detail = {
            "silo": name,
            "agent": 1,
            "token_id": f"t-{name}",
            "csr_sha256": "c" * 64,
            "keys": [
                {"purpose": purpose, "public": key.public_key().public_bytes_raw().hex()}
                for purpose, key in keys
            ],
        }
        tx.log("silo.enrolled", actor=silo.actor, target=target, detail=detail)

    server.core.writer.run(log)
    return silo


def delta(server: Server, event: int) -> Path:
    path = server.directory / f"{event}.safetensors"
    rng = np.random.default_rng(event)
    arrays = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in LAYOUT.specs}
    write_tensors(path, LAYOUT, arrays)
    return path


def send(server: Server, silo: FakeSilo, job: str, terms: JobTerms, event: int) -> None:
    """Once, however often the event is played."""
    path = delta(server, event)
    with server.core.reader.connect() as connection:
        known = select(tables.updates.c.id).where(
            tables.updates.c.delta == canonical.sha256(path.read_bytes())
        )
        if connection.execute(known).first() is not None:
            return
    lease = server.lease(silo, job)
    statement = silo.statement(lease, terms, path, sequence=event, checkpoint=seen(server))
    assert server.upload(silo, statement, path.read_bytes()).reason == ""


def play(server: Server, case: str, arm: bool = False) -> str:
    """The rest of the history; the job. What is done already is written to `played`."""
    played = server.directory / "played"
    if not played.exists():
        begin(server)
        for name in "abcd":
            enrol(server, name)
        job, terms = server.submit(
            f"[evaluation]\nevery = 50\n[silos]\nmin = 3\n[aggregation]\n{CASES[case]}", LAYOUT
        )
        for name in "abc":
            server.decide(fake_silo(name), job, terms)
        (server.directory / "job").write_text(job)
        played.write_text("0")
    job = (server.directory / "job").read_text()
    with server.core.reader.connect() as connection:
        terms = records.job_terms(connection, job)
    for event in range(int(played.read_text()), len(EVENTS)):
        server.clock.now = START + PACE * (event + 1)
        what, _, name = EVENTS[event].partition(" ")
        armed[:] = [event] if arm and event == KILLED else []
        match what:
            case "hold":
                server.lease(fake_silo(name), job)
            case "send" | "deliver":
                send(server, fake_silo(name), job, terms, event)
            case "advance":
                server.clock.now += PACE / 2
                while server.core.aggregation.advance(job):
                    pass
            case _:
                server.decide(fake_silo(name), job, terms, what)
        played.write_text(str(event + 1))
    return job


armed: list[int] = []


def main() -> None:
    directory, case, gap = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

    def reached(name: str) -> None:
        if armed and name == gap:
            os.kill(os.getpid(), signal.SIGKILL)

    server = Server(directory, reached)
    play(server, case, arm=True)


if __name__ == "__main__":
    main()
