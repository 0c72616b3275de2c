"""What else a log tells: certificates, silence, restarts, work given back; told beside a `Story`."""

from anabranch.terms import Evaluation
from anabranch.tlog.entry import Target
from anabranch.wire import canonical
from tests.auditor.book import ADMIN, START
from tests.auditor.story import TERMS, Story

OFTEN = TERMS.model_copy(update={"evaluation": Evaluation(every=1)})  # every version is due


def start_server(story: Story, epoch: int) -> None:
    detail = {"release": "0.1.0", "epoch": epoch, "recovered": {"open_steps": 0, "requeued": epoch}}
    story.book.log("server.started", Target(kind="server", id="aggregator"), detail)


def certificate(story: Story, silo: str, digest: str, previous: str | None = None) -> None:
    detail = {
        "identity": story.agent(silo).id,
        "cert_sha256": digest * 64,
        "spki_sha256": digest * 64,
        "serial": digest * 40,
        "not_before": canonical.utc(START),
        "not_after": canonical.utc(START + 86400),
    }
    target = Target(kind="certificate", id=digest * 40)
    if previous is None:
        story.book.log("cert.issued", target, detail)
    else:
        detail["previous_cert_sha256"] = previous * 64
        story.book.log("cert.renewed", target, detail, actor=story.agent(silo))


def presence(story: Story, type: str, silo: str) -> None:
    story.book.log(type, Target(kind="silo", id=silo), {"silo": silo})


def turn_away(story: Story) -> None:
    detail = {"code": "bad_token", "count": 7, "method": "Enrolment/Begin"}
    story.book.log("auth.failed", Target(kind="server", id="aggregator"), detail)


def release(story: Story, silo: str, lease: str) -> None:
    detail = {
        "lease": lease,
        "silo": silo,
        "reason": "task_failed",
        "exception": "ValueError",
        "code_line": "task.py:7",
    }
    target = Target(kind="lease", id=lease)
    story.book.log("lease.released", target, detail, actor=story.agent(silo), job="digits-1")


def best(story: Story, version: int, metric: str = "accuracy") -> None:
    detail = {"version": version, "metric": metric, "value": canonical.hexfloat(0.75)}
    target = Target(kind="model", id=f"digits-1/{version}")
    story.book.log("model.best", target, detail, job="digits-1")


def export(story: Story, version: int, part: str = "parameters", selector: str = "head") -> str:
    digest = canonical.sha256(story.heads[version][part].read_bytes())
    detail = {"version": version, "sha256": digest, "selector": selector}
    target = Target(kind="model", id=f"digits-1/{version}", sha256=digest)
    story.book.log("model.exported", target, detail, actor=ADMIN, job="digits-1")
    return digest


def busy(story: Story) -> Story:
    """After `begin`: two versions and much trouble, and a job that goes on with something open of each kind."""
    start_server(story, 1)
    for silo in ("a", "b"):
        certificate(story, silo, silo)
    certificate(story, "a", "e", previous="a")
    story.enrol("c")
    for decision in ("deny", "approve", "withdraw"):
        story.decide("c", decision)
    story.revoke("c")
    release(story, "a", story.lease("a"))
    presence(story, "silo.lost", "b")
    presence(story, "silo.returned", "b")
    start_server(story, 2)
    story.aggregate([story.update("a", story.lease("a"))], closed_by="max_wait", absent=["b"])
    story.evaluate("a", story.lease("a", "evaluate"))
    best(story, 1)
    story.change("job.paused")
    story.change("job.resumed")
    story.refuse("b")
    turn_away(story)
    late = story.update("b", story.lease("b", version=0))
    story.aggregate([story.update("a", story.lease("a")), late])
    export(story, 2)
    export(story, 2, "ema", "ema")
    story.update("a", story.lease("a"))
    story.lease("b")
    presence(story, "silo.lost", "b")
    expires = {"silo": "d", "token_id": "t-d", "expires": canonical.utc(START + 10)}
    story.book.log("silo.invited", Target(kind="silo", id="d"), expires, actor=ADMIN)
    return story
