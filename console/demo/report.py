"""The demo's report as one document: what federation did for each silo, what each gave, and whether the log holds.

Every number comes from the exported log (`History`), from an evaluation of exported models (`evaluate_all`), or from
the auditor's verdict; `Setup` only says how the demo dealt the records and how slow it made each silo.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from anabranch import __version__
from console.demo.history import History, Update

FORMAT = "anabranch-demo-report/1"


@dataclass(frozen=True)
class SiloSetup:
    """How the demo set a silo up."""

    silo: str
    train_records: int
    held_out_records: int
    label_counts: tuple[int, ...]  # of labels 0..9, both parts together
    seconds_per_batch: float
    slowness: float  # 1 is the usual speed


@dataclass(frozen=True)
class Verdict:
    """What `anabranch-audit` said: its command, exit code and JSON document."""

    command: str
    exit_code: int
    document: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class Killed:
    """A SIGKILL of the server. Times are unix seconds of this machine's clock."""

    version: int
    killed: float
    restarted: float
    ready: float


@dataclass(frozen=True)
class Setup:
    seed: int
    strategy: str
    versions: int
    concentration: float | None  # of the Dirichlet split; None: no two silos have a digit in common
    local_steps: int
    silos: tuple[SiloSetup, ...]
    killed: Killed | None


def build(
    history: History, measured: Mapping[str, Any], setup: Setup, verify: Verdict, replay: Verdict
) -> dict[str, Any]:
    """The document of report.json."""
    silos = [_silo(history, measured["silos"][silo.silo], silo) for silo in setup.silos]
    federated = silos[0]["federated"]["all"]
    return {
        "format": FORMAT,
        "release": __version__,
        "federation": history.federation,
        "job": _job(history, setup),
        "verdict": {
            "federated_beats_every_local_on_all": all(federated > silo["local"]["all"] for silo in silos),
            "log_verified": verify.ok,
            "replayed_bit_exactly": replay.ok and not _replay(replay)["digest_only"],
            "every_update_settled_once": history.exactly_once(),
        },
        "model": {
            "version": history.head.number,
            "selector": "ema" if history.head.ema_sha256 else "head",
            "sha256": history.released,
            "accuracy_all": federated,
            "head_sha256": history.head.parameters_sha256,
            "head_accuracy_all": measured["versions"][str(history.head.number)],
            "best_local_accuracy_all": max(silo["local"]["all"] for silo in silos),
        },
        "silos": silos,
        "log": _log(history, verify, replay),
        "server_killed": _killed(history, setup.killed),
        "incidents": [
            {
                "seconds": round(i.time - history.started, 3),
                "type": i.type,
                "silo": i.silo,
                "detail": i.detail,
            }
            for i in history.incidents
        ],
        "accuracy_by_version": _accuracies(history, measured),
        "revival": None,
    }


def _job(history: History, setup: Setup) -> dict[str, Any]:
    return {
        "id": history.job,
        "name": history.name,
        "terms_sha256": history.terms_sha256,
        "outcome": history.outcome,
        "reason": history.reason,
        "seconds": round(history.ended - history.started, 3),
        "strategy": setup.strategy,
        "seed": setup.seed,
        "local_steps": setup.local_steps,
        "concentration": setup.concentration,
    }


def _log(history: History, verify: Verdict, replay: Verdict) -> dict[str, Any]:
    return {
        "entries": history.entries,
        "not_understood": history.not_understood,
        "verify": _verdict(verify, _verified_words(verify)),
        "replay": _verdict(replay, _replayed_words(replay)),
        "approvals": [
            {"silo": d.silo, "decision": d.decision, "log_index": d.index, "terms_sha256": d.terms_sha256}
            for d in history.decisions
        ],
    }


def _accuracies(history: History, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each version that was evaluated."""
    return [
        {
            "version": version.number,
            "seconds": round(version.time - history.started, 3),
            "accuracy_all": measured["versions"][str(version.number)],
            "ema_accuracy_all": measured["averages"].get(str(version.number)),
        }
        for version in history.versions
        if str(version.number) in measured["versions"]
    ]


def _silo(history: History, measured: Mapping[str, Any], setup: SiloSetup) -> dict[str, Any]:
    updates = history.of(setup.silo)
    refusals = [refusal for refusal in history.refusals if refusal.silo == setup.silo]
    merged = [update for update in updates if update.fate == "merged"]
    staleness = [update.staleness or 0 for update in merged]
    local, federated, tuned = measured["local"], measured["federated"], measured["tuned"]
    return {
        "silo": setup.silo,
        "train_records": setup.train_records,
        "held_out_records": setup.held_out_records,
        "label_counts": list(setup.label_counts),
        "seconds_per_batch": setup.seconds_per_batch,
        "slowness": setup.slowness,
        "local": {key: local[key] for key in ("own", "all", "steps", "trained_steps")},
        "federated": {key: federated[key] for key in ("own", "all")},
        "tuned": {key: tuned[key] for key in ("own", "all", "steps")},
        "local_wins_on_own": local["own"] > federated["own"],
        "updates": {
            "sent": len(updates) + len(refusals),
            "merged": len(merged),
            "refused": len(refusals) + _count(updates, "refused"),
            "retired": _count(updates, "retired"),
            "open": _count(updates, "open"),
        },
        "refused_because": sorted(
            {r.code for r in refusals} | {u.reason for u in updates if u.fate == "refused"}
        ),
        "retired_because": sorted({u.reason for u in updates if u.fate == "retired"}),
        "mean_staleness": round(fmean(staleness), 2) if staleness else None,
        "max_staleness": max(staleness, default=None),
        "bytes": sum(update.bytes for update in updates),
        "versions_absent": sum(setup.silo in version.absent for version in history.versions),
    }


def _killed(history: History, killed: Killed | None) -> dict[str, Any] | None:
    if killed is None:
        return None
    after = [update.received for update in history.updates if update.received > killed.restarted]
    before = [update for update in history.updates if update.received <= killed.killed]
    return {
        "version": killed.version,
        "seconds": round(killed.killed - history.started, 3),
        "seconds_until_ready": round(killed.ready - killed.killed, 3),
        "seconds_until_next_update": round(min(after) - killed.killed, 3) if after else None,
        "acknowledged_before": len(before),
        "of_those_merged_once": sum(
            update.fate == "merged" and update.times_merged == 1 for update in before
        ),
        "of_those_retired_or_refused": sum(update.fate in ("retired", "refused") for update in before),
        "of_those_lost": sum(update.fate == "open" for update in before),
        "of_those_merged_twice": sum(update.times_merged > 1 for update in before),
    }


def _verdict(verdict: Verdict, words: str) -> dict[str, Any]:
    told = {"ok": verdict.ok, "words": words if verdict.ok else _why_not(verdict.document)}
    return {**told, "command": verdict.command, "exit_code": verdict.exit_code, "document": verdict.document}


def _verified_words(verdict: Verdict) -> str:
    found = verdict.document
    if not verdict.ok:
        return ""
    return (
        f"{found['log']['size']} entries form one append-only tree under the pinned key. {found['signatures']} signatures"
        f" of silos are good, {found['views_of_silos']} views of the log they signed agree with it, and"
        f" {found['objects']['match']} files match the digests the log names."
    )


def _replayed_words(verdict: Verdict) -> str:
    found = _replay(verdict)
    rest = len(found["digest_only"])
    return (
        f"{found['exact']} of {found['replayed']} aggregations were recomputed bit for bit from signed updates."
        + (f" {rest} more rest on their digests only." if rest else "")
    )


def _replay(verdict: Verdict) -> Mapping[str, Any]:
    return verdict.document.get("replay") or {"replayed": 0, "exact": 0, "digest_only": [], "different": []}


def _why_not(document: Mapping[str, Any]) -> str:
    """The first thing the auditor did not like."""
    if "error" in document:
        return str(document["error"].get("message", ""))
    different = _replay(Verdict("", 1, document))["different"]
    if different:
        return f"Version {different[0]['version']} differs: {different[0]['first']}"
    findings = document.get("findings") or document.get("verify", {}).get("findings") or []
    return f"{findings[0]['where']}: {findings[0]['what']}" if findings else "See the auditor's log."


def _count(updates: list[Update], fate: str) -> int:
    return sum(update.fate == fate for update in updates)
