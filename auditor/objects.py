"""Objects: files named by the digest of their bytes, and the sealed facts an export opens."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from anabranch.errors import AnabranchError, Refused
from anabranch.tlog.details import JobSubmitted, ModelEncoded, ModelPublished, UpdateReceived
from anabranch.tlog.entry import Entry, seal
from anabranch.tlog.revivals import RevivalPerformed
from auditor.export import SEALED_FILE, Export
from auditor.report import Missing, Report

Progress = Callable[[str, int, int], None]


@dataclass
class Named:
    """What the log names by digest, and by which words a person would."""

    objects: dict[str, tuple[str, str]] = field(default_factory=dict)  # digest → kind, what it is
    sealed: dict[str, str] = field(default_factory=dict)  # commitment → silo

    def see(self, entry: Entry) -> None:
        detail = entry.detail
        match detail:
            case JobSubmitted():
                for part in ("terms", "archive", "manifest"):
                    self._name(
                        getattr(detail, f"{part}_sha256"), "parts of jobs", f"{part} of job {entry.job}"
                    )
            case ModelPublished():
                for part in ("parameters", "optimizer", "ema"):
                    what = f"{part} of {entry.job} version {detail.version}"
                    self._name(getattr(detail, f"{part}_sha256"), "snapshots", what)
            case ModelEncoded():
                whom = f" for tier {detail.tier}" if detail.tier else ""
                what = f"view of {entry.job} version {detail.version}{whom}"
                self._name(detail.view_sha256, "snapshots", what)
            case UpdateReceived():
                self._name(detail.delta_sha256, "deltas", f"update {detail.update} by silo {detail.silo}")
            case RevivalPerformed():
                self._name(detail.delta_sha256, "deltas", f"revival {detail.revival} of job {entry.job}")
        kind = "evaluation statements" if entry.type == "model.evaluated" else "statements"
        for sig in entry.sigs or ():
            self._name(sig.payload_sha256, kind, f"signed for {entry.type} {entry.target.id}")
        if entry.sealed is not None:
            self.sealed[entry.sealed.commit] = getattr(detail, "silo", "")

    def _name(self, digest: str | None, kind: str, what: str) -> None:
        if digest is not None:
            self.objects.setdefault(digest, (kind, what))


def check(
    export: Export, named: Named, pruned: Mapping[str, int], report: Report, progress: Progress
) -> None:
    """Hash everything that is there, list what is not. `pruned`: digest → the entry that says why it is not."""
    present = dict(export.objects())
    total, done = sum(present.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("objects", done, total)

    for digest in present:
        try:
            if export.hash_object(digest, advance):
                report.objects += 1
            else:
                what = ", ".join(named.objects.get(digest, ("named by no entry",)))
                report.find(6, f"objects/{digest}", f"holds other bytes than its name says ({what})")
        except Refused as refusal:
            report.find(6, f"objects/{digest}", str(refusal))
    report.object_bytes = done
    report.missing = [
        Missing(digest, *words, pruned.get(digest))
        for digest, words in named.objects.items()
        if digest not in present
    ]
    unnamed = len(present.keys() - named.objects.keys())
    if unnamed:
        report.notes.append(f"{unnamed} objects are named by no entry that was understood")
    for commitment in export.sealed():
        _check_sealed(export, commitment, named, report)


def _check_sealed(export: Export, commitment: str, named: Named, report: Report) -> None:
    """`{"fields", "salt", "silo"}`, in that spelling: the facts behind a commitment of the log."""
    where = f"sealed/{commitment}.json"
    try:
        data = export.read(where, SEALED_FILE)
        opened = json.loads(data)
        values, salt = opened["fields"], bytes.fromhex(opened["salt"])
        spelled = json.dumps({"fields": values, "salt": salt.hex(), "silo": opened["silo"]}, sort_keys=True)
        if data != spelled.encode():
            report.find(6, where, "is not spelled as an export spells it")
        elif named.sealed.get(commitment) != opened["silo"]:
            report.find(6, where, "no entry of this silo seals these facts")
        elif seal(values, salt).commit != commitment:
            report.find(6, where, "its facts do not fit the commitment in the log")
        else:
            report.opened += 1
    except (AnabranchError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        report.find(6, where, f"cannot be read: {error}")
