"""Is this log intact, and is the story it tells consistent? In this order, each step resting on those before it:

1. checkpoint  The tree head is signed by the pinned key, and the key in the export is that key.
2. tree        Every entry is hashed; the root must be the signed one, and every tile what the entries give.
3. entries     Every entry parses under its type's closed schema. A type this release does not know is counted as not
               understood: it is in the tree all the same. The first entry names this log, its key and its CA.
4. signatures  Approvals, updates and evaluations are signed by keys their silos registered and that were not revoked,
               and say what was signed. Every tree head a silo signed into a statement is a tree head of this log.
5. life cycle  Every entry can follow those before it: no update without a lease and an approval, none used twice,
               every version the child of the one before.
6. objects     Every file named by a digest has it. What is not there rests on its digest only, and is listed with the
               entry that says it was pruned, if one does. Facts the export opens fit the commitments that sealed them.
7. receipts    What silos were promised to be in the log is in it (if their receipts are given).

Steps 3 to 5 are one pass. If step 1 or 2 fails nothing after it would mean anything, and it is not begun.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import Refused
from anabranch.tlog.checkpoint import Checkpoint, open_checkpoint
from anabranch.tlog.details import LogGenesis
from anabranch.tlog.entry import Entry
from anabranch.wire import limits
from auditor import objects
from auditor.claims import derived
from auditor.export import Export
from auditor.history import History
from auditor.lifecycle import LifeCycle
from auditor.pin import CAUTION, Pin, authority_pins, read_vkey
from auditor.reading import read
from auditor.receipts import check_receipt, read_receipts
from auditor.report import Report
from auditor.retention import pruned_objects
from auditor.signatures import Signatures
from auditor.tree import Tree, recompute

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much
STRIDE = 64  # entries from one sign of progress to the next
See = Callable[[int, Entry], None]  # gets every entry that parses, in order, after it was judged


@dataclass(frozen=True)
class Verified:
    report: Report
    history: History
    tree: Tree


def verify(
    export: Export,
    pin: Pin,
    receipts: Sequence[Path] = (),
    progress: Progress = lambda what, done, total: None,
    see: See = lambda index, entry: None,
    processes: int | None = None,
) -> Verified:
    """The steps above. `processes`: how many share the work of a long log; None: as many as there are cores.
    Whatever is wrong with the export ends up in the report; nothing is raised for it."""
    report = Report(pin.vkey)
    if pin.own:
        report.notes.append(CAUTION)
    # 1
    report.reached = 1
    checkpoint = _checkpoint(export, pin, report)
    if checkpoint is None:
        return Verified(report, History(), Tree())
    # 2
    report.reached = 2
    tree = _tree(export, checkpoint, report)
    if report.findings:
        return Verified(report, History(), tree)
    # 3, 4, 5
    report.reached = 5
    with _uncollected():
        history, named = _entries(export, pin, tree, report, progress, see, processes)
    # 6
    report.reached = 6
    objects.check(export, named, pruned_objects(history), report, progress)
    # 7
    report.reached = 7
    _receipts(receipts, pin, tree, report)
    return Verified(report, history, tree)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Millions of small objects grow into a history here, none of them in cycles: looking for some takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checkpoint(export: Export, pin: Pin, report: Report) -> Checkpoint | None:
    """Step 1."""
    try:
        if read_vkey(export) != pin.vkey:
            report.find(1, "keys/log.vkey", f"is not the pinned key {pin.vkey}")
    except Refused as refusal:
        report.find(1, "keys/log.vkey", str(refusal))
    try:
        checkpoint = open_checkpoint(export.checkpoint(), pin.verifier, pin.origin)
    except Refused as refusal:
        report.find(1, "checkpoint", str(refusal))
        return None
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    return checkpoint


def _tree(export: Export, checkpoint: Checkpoint, report: Report) -> Tree:
    """Step 2."""
    tree = recompute(export, checkpoint.size, lambda path, what: report.find(2, path, what))
    if tree.root != checkpoint.root:
        report.find(
            2,
            "tile/entries",
            f"the entries have the root {tree.root.hex()}, signed is {checkpoint.root.hex()}",
        )
    strangers = [] if report.findings else export.strangers(checkpoint.size)
    if strangers:
        rest = f" and {len(strangers) - 5} more files" if len(strangers) > 5 else ""
        report.notes.append(f"no evidence, nothing vouches for it: {', '.join(strangers[:5])}{rest}")
    return tree


def _entries(
    export: Export, pin: Pin, tree: Tree, report: Report, progress: Progress, see: See, processes: int | None
) -> tuple[History, objects.Named]:
    """Steps 3, 4 and 5."""
    named = objects.Named()
    signatures = Signatures(
        lambda digest: export.object(digest, limits.ENVELOPE),
        lambda index, entry, what: report.find(4, _where(index, entry), what, index),
    )
    story = LifeCycle(
        export.object, lambda index, entry, what: report.find(5, _where(index, entry), what, index)
    )
    if tree.size == 0:
        report.find(3, "checkpoint", "the log is empty; every log begins with log.genesis")
    federation = ""
    for one in read(export, tree, processes):
        index, entry = one.index, one.entry
        if index % STRIDE == 0 or index + 1 == tree.size:
            progress("entries", index + 1, tree.size)
        if entry is None:
            report.find(3, f"entry {index}", one.refusal, index)
            continue
        report.first, report.last = report.first or entry.time, entry.time
        (report.types if entry.understood else report.not_understood)[entry.type] += 1
        federation = federation or entry.fed
        if entry.fed != federation:
            report.find(
                3, _where(index, entry), f"is of federation {entry.fed}, the log of {federation}", index
            )
        if index == 0 or entry.type == "log.genesis":
            _genesis(export, pin, index, entry, report)
        if entry.understood:
            named.see(entry)
            story.see(index, entry, signatures.see(index, entry, one.prepared))
        see(index, entry)
    story.finish()
    report.signatures = signatures.good
    _views(signatures, tree, report)
    _summary(story.history, signatures, report)
    return story.history, named


def _genesis(export: Export, pin: Pin, index: int, entry: Entry, report: Report) -> None:
    """The log says about itself what the auditor pinned, and which authority its identities come from."""
    detail = entry.detail
    if index != 0 or not isinstance(detail, LogGenesis):
        report.find(3, _where(index, entry), "a log begins with log.genesis, and only once")
        return
    if (detail.origin, detail.vkey) != (pin.origin, pin.vkey):
        report.find(
            3, _where(index, entry), f"begins the log {detail.origin} with another key than the pinned one"
        )
    try:
        strange = authority_pins(export) - set(detail.ca_pins)
        if strange:
            report.find(3, "keys/ca.pem", f"{', '.join(sorted(strange))} is not the CA this log began with")
    except Refused as refusal:
        report.find(3, "keys/ca.pem", str(refusal))


def _views(signatures: Signatures, tree: Tree, report: Report) -> None:
    """Step 4: every silo saw this log. Two histories would need a silo's signature under the other one's root."""
    roots = tree.roots(size for _, _, size, _ in signatures.views)
    for index, type, size, root in signatures.views:
        if size > index or roots[size].hex() != root:
            report.find(
                4,
                f"entry {index} ({type})",
                f"its silo had seen a log of {size} entries under root {root}: not this log",
            )
        else:
            report.views += 1


def _summary(history: History, signatures: Signatures, report: Report) -> None:
    fates = [update.fate for update in history.updates.values()]
    report.updates["received"] = len(fates)
    for fate in ("merged", "retired", "open"):
        report.updates[fate] = fates.count(fate)
    report.updates["refused"] = history.refused
    report.open_updates = [name for name, update in history.updates.items() if update.fate == "open"]
    report.versions = {name: job.head for name, job in history.jobs.items()}
    report.privacy = derived(history)
    for one in report.privacy:
        if not one.kept:
            spent = f"epsilon {one.epsilon:.4g} at silo {one.silo}, and the job promises {one.promised:.4g}"
            report.find(5, f"job {one.job}", f"the claims of privacy come to {spent}")
    if signatures.withheld:
        report.notes.append(
            f"{signatures.withheld} evaluations are private and left out: their signatures were not checked"
        )


def _receipts(paths: Sequence[Path], pin: Pin, tree: Tree, report: Report) -> None:
    """Step 7."""
    proven: list[tuple[str, Checkpoint]] = []
    try:
        for where, receipt in read_receipts(paths):
            try:
                proven.append((where, check_receipt(receipt, pin, tree)))
            except Refused as refusal:
                report.find(7, where, str(refusal))
    except Refused as refusal:
        report.find(7, "receipts", str(refusal))
    roots = tree.roots(checkpoint.size for _, checkpoint in proven)
    for where, checkpoint in proven:
        if roots[checkpoint.size] != checkpoint.root:
            report.find(7, where, f"the log of {checkpoint.size} entries it was given under is not this one")
        else:
            report.receipts += 1


def _where(index: int, entry: Entry) -> str:
    return f"entry {index} ({entry.type})"
