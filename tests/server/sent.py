"""What a silo sends, up to the point where something is decided."""

from anabranch.wire import canonical, statements
from server.intake import Upload
from server.scheduling import Lease
from tests.server.harness import FEDERATION, FakeSilo, Server

ONE = "[aggregation]\nbuffer = 1\n"


def opened(server: Server, silo: FakeSilo, statement: statements.UpdateStatement, data: bytes) -> Upload:
    """Every byte has arrived; nothing is decided."""
    envelope = silo.sign(statement.encode())
    upload = server.core.intake.open(silo.name, silo.actor, statement.update, envelope, 0)
    assert isinstance(upload, Upload)
    upload.append(data)
    return upload


def evaluation(lease: Lease, **changes: object) -> statements.EvaluationStatement:
    fields: dict[str, object] = {
        "federation": FEDERATION,
        "job": lease.job,
        "lease": lease.id,
        "nonce": lease.nonce,
        "version": lease.view.version,
        "view_sha256": lease.view.digest,
        "split": lease.split,
        "metrics": {"accuracy": canonical.hexfloat(0.5)},
        "num_examples": 10,
    }
    return statements.EvaluationStatement.model_validate({**fields, **changes})
