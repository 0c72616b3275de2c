"""What a confused or dishonest silo sends: what was answered before, what is another's, and what is signed but false."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anabranch.wire import canonical, dsse, statements
from anabranch.wire.tensors import write_tensors
from tests.server.harness import MANIFEST
from tests.simulation.history import Broken
from tests.simulation.silos import Silo

if TYPE_CHECKING:
    from tests.simulation.world import Federation


def duplicate(world: "Federation", number: int, which: int, claimed_by: int) -> None:
    if number not in world.silos or claimed_by not in world.silos:
        return
    sent = [one for one in world.network.sent if one[0] == world.silos[number].name]
    if sent:
        _, update, envelope, data = sent[which % len(sent)]
        world.fault("duplicate sent" if claimed_by == number else "duplicate under another identity")
        wire = world.silos[claimed_by].wire
        world.expect(lambda: wire.submit(update, envelope, 0, iter([data]), 0))


def reevaluate(world: "Federation", number: int, which: int, claimed_by: int) -> None:
    if number not in world.silos or claimed_by not in world.silos:
        return
    sent = [one for one in world.network.judged if one[0] == world.silos[number].name]
    if sent:
        _, lease, envelope = sent[which % len(sent)]
        world.fault("evaluation sent again" if claimed_by == number else "evaluation under another identity")
        world.expect(lambda: world.silos[claimed_by].wire.submit_evaluation(lease, envelope, 0))


def forge(world: "Federation", silo: Silo, job: str, lie: str) -> None:
    task = silo.wire.next_task(job, silo.log.seen())
    if not hasattr(task, "nonce") or task.kind != "train":
        return
    seen = silo.log.current()
    assert seen is not None
    path = world.root / "forged"
    write_tensors(path, MANIFEST, {s.name: np.ones(s.shape, np.float32) for s in MANIFEST.specs})
    data, agreed = path.read_bytes(), world.terms[job]
    honest: dict[str, Any] = {
        "update": f"forged-{world.random.randbytes(8).hex()}",
        "federation": world.machine.info.federation,
        "job": job,
        "lease": task.id,
        "nonce": task.nonce,
        "sequence": 2**40,
        "base_version": task.view.version,
        "base_sha256": task.view.digest,
        "delta_sha256": canonical.sha256(data),
        "bytes": len(data),
        "terms_sha256": agreed.digest(),
        "manifest_sha256": agreed.manifest_sha256,
        "num_examples": 1 if agreed.file.silos.weighting == "examples" else None,
        "steps": 1,
        "release": "0.1.0",
        "checkpoint": {"size": seen.size, "root": seen.root.hex()},
    }
    lies: dict[str, dict[str, Any]] = {
        "nonce": {"nonce": "0" * 32},
        "base": {"base_version": task.view.version + 1},
        "digest": {"delta_sha256": "1" * 64},
        "size": {"bytes": len(data) + 4},
    }
    statement = statements.UpdateStatement.model_validate(honest | lies[lie])
    envelope = dsse.sign(statements.PAYLOAD_TYPE, statement.encode(), silo.update_key).encode()
    world.fault(f"forged {lie}")
    answer = silo.wire.submit(statement.update, envelope, 0, iter([data]), seen.size)
    if not answer.reason:
        raise Broken(f"an update with a false {lie} was admitted")
