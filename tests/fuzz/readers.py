"""What an auditor parses of an export nobody vouches for, and what a console shows of a server's words."""

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console

from anabranch.errors import Refused
from anabranch.tlog import tiles
from anabranch.tlog.entry import parse_entry
from anabranch.v1 import admin_pb2
from anabranch.wire import statements
from auditor import dossier, gaps, lineage, objects, page, parsing, reading, review, tables, view
from auditor.chronicle import Chronicle
from auditor.export import Export
from auditor.pin import Pin, authority_pins, pin
from auditor.receipts import check_receipt, read_receipts
from auditor.report import Report
from auditor.tree import Tree
from auditor.verify import Verified, verify
from console import board, documents, silos
from console.client import presentable
from console.export import receive
from tests.auditor import trouble
from tests.auditor.book import ROOT, Book
from tests.auditor.story import Story
from tests.fuzz import scratch, shapes
from tests.fuzz.target import Target
from tests.fuzz.wire import entries, parsed, signed


def alike(ours: Callable[[bytes], Any], contract: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """The auditor's fast way has the verdict and the value of the contract's own parser."""

    def judged(parse: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return parse(data)
        except Refused as error:
            return error.code, str(error)

    def given(data: bytes) -> None:
        fast, slow = judged(ours, data), judged(contract, data)
        assert fast == slow, (fast, slow)
        if isinstance(slow, tuple):
            contract(data)
        elif ours is parsing.parse:
            assert parsing.revive(data) == slow

    return given


# --- an export -------------------------------------------------------------------------------------------------------


@cache
def story(teller: str) -> Story:
    told = trouble.busy(Story(Book(scratch.folder(teller) / "export")).begin())
    left = told.update("b", told.lease("b"))
    told.change("job.completed")
    told.retire(left)
    told.book.write()
    return told


def export(teller: str) -> Export:
    return Export(story(teller).book.directory)


def pinned(teller: str) -> Pin:
    return pin(export(teller), story(teller).book.signer.vkey)


def lying_server(data: bytes) -> None:
    """The entries a server signs may say anything: verification ends with a report, and what it calls verified can be
    told in every way there is.
    """
    book = story("liar").book
    book.entries = tiles.parse_bundle(data) or [b""]
    book.rebuild()
    book.write()
    written, told = Chronicle(0), dossier.Dossier("a")

    def see(index: int, entry: Any) -> None:
        written.see(index, entry)
        told.see(index, entry)

    _told(export("liar"), verify(export("liar"), pinned("liar"), see=see), written, told)


def _told(export: Export, checked: Verified, written: Chronicle, told: dossier.Dossier) -> None:
    report, history = checked.report, checked.history
    shown(view.verified(report))
    shown(tables.missing(report, gaps.find_gaps(report, history)))
    json.dumps(report.document()).encode()
    page.render(review.review(export, checked, written, None, None)).encode()
    if not report.verified:
        return
    if "a" in history.silos:
        dossier.require_known(history, "a")
        shown(tables.told(report, told, dossier.document(told, history)))
    for job in history.jobs:
        found = lineage.trace(export, history, lineage.choose(history, job, "head"))
        json.dumps(lineage.document(found)).encode()
        shown(tables.traced(report, found))


def shown(human: Any) -> None:
    """A terminal gets no command out of it."""
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=False).print(human)
    text = out.getvalue()
    text.encode()
    odd = {c for c in text if c != "\n" and not c.isprintable()}
    assert not odd, odd


@cache
def lies() -> list[bytes]:
    return [tiles.encode_bundle(story("liar").book.entries)]


def one_lie(data: bytes, random: Random) -> bytes:
    """One entry of a log said differently, or left out."""
    try:
        found = tiles.parse_bundle(data)
    except Refused:
        return shapes.octets(data, random)
    if not found or random.randint(0, 9) == 0:
        return shapes.octets(data, random)
    at = random.randrange(len(found))
    if random.randint(0, 5) == 0:
        del found[at]
    else:
        found[at] = shapes.json_document(found[at], random)[: tiles.MAX_BUNDLED_ENTRY]
    return tiles.encode_bundle(found[: tiles.WIDTH])


def export_file(name: str) -> Callable[[bytes], None]:
    """One file of the export replaced; what is not its own bytes is found."""

    def given(data: bytes) -> None:
        path = story("honest").book.directory / name
        honest = path.read_bytes()
        path.write_bytes(data)
        try:
            report = verify(export("honest"), pinned("honest")).report
        finally:
            path.write_bytes(honest)
        assert not report.verified or data == honest

    return given


def file_of(name: str) -> Target:
    return Target(
        f"export: {name}", export_file(name), lambda: [(story("honest").book.directory / name).read_bytes()]
    )


def ca_file(data: bytes) -> None:
    path = scratch.folder("ca") / "keys"
    path.mkdir(exist_ok=True)
    (path / "ca.pem").write_bytes(data)
    assert len(authority_pins(Export(path.parent))) == data.count(b"BEGIN CERTIFICATE")


def vkey_option(data: bytes) -> None:
    given = scratch.file("vkey", data)
    assert pin(export("honest"), str(given)).verifier.name in data.decode("utf-8")


def vkeys() -> list[bytes]:
    vkey = story("honest").book.signer.vkey
    return [vkey.encode() + b"\n", json.dumps({"log_vkey": vkey}).encode()]


def kept_receipts(data: bytes) -> None:
    path = scratch.file("receipts.jsonl", data)
    for _, receipt in read_receipts([path]):
        check_receipt(receipt, pinned("honest"), honest_tree())


@cache
def honest_tree() -> Tree:
    return verify(export("honest"), pinned("honest")).tree


def receipts() -> list[bytes]:
    book = story("honest").book
    some = [book.receipt(index) for index in (0, 5)]
    return [json.dumps(some).encode(), b"".join(json.dumps(one).encode() + b"\n" for one in some)]


def kept_checkpoint(data: bytes) -> None:
    review.read_since(scratch.file("since", data), pinned("honest"))


def sealed_facts(data: bytes) -> None:
    """They are opened, or there is a finding; never anything else."""
    root = scratch.folder("sealed")
    (root / "sealed").mkdir(exist_ok=True)
    (root / "sealed" / f"{COMMITMENT}.json").write_bytes(data)
    report = Report("")
    objects.check(Export(root), objects.Named(sealed={COMMITMENT: "a"}), {}, report, lambda *_: None)
    assert report.opened + len(report.findings) == 1
    shown(view.verified(report))


FACTS = {"metrics": {"accuracy": "0x1.0000000000000p-1"}, "num_examples": 7}
SALT = bytes(32)
COMMITMENT = objects.seal(FACTS, SALT).commit


# --- a console -------------------------------------------------------------------------------------------------------


def job_status(data: bytes) -> None:
    overview = admin_pb2.Overview(jobs=[presentable(parsed(admin_pb2.JobStatus, data))])
    json.dumps(documents.snapshot(overview), ensure_ascii=False).encode()
    shown(board.board(overview, every_silo=True))
    shown(board.jobs_table(list(overview.jobs)))
    assert board.line(overview.jobs[0]).isprintable()


def silo_row(data: bytes) -> None:
    silo = presentable(parsed(admin_pb2.Silo, data))
    json.dumps(silos.document(silo), ensure_ascii=False).encode()
    shown(silos.table([silo]))


def statuses() -> list[bytes]:
    silo = admin_pb2.SiloStatus(
        silo="north", decision="approved", connected=True, last_seen=1_795_132_800, training=True, step=3, steps=20,
        received=4, merged=2, refused=1, mean_staleness=0.5, bytes=4096, last_reason="nonfinite",
    )  # fmt: skip
    scores = [
        admin_pb2.Evaluation(version=3, silo=name, split="validation", metrics={"accuracy": 0.5})
        for name in ("", "north")
    ]
    revival = admin_pb2.RevivalStatus(
        teachers=["north"], tallies=[admin_pb2.Tally(outcome="skipped", reason="late", count=2)], version=2,
        agreement_before=0.5, agreement_after=0.75, seconds=3.0,
    )  # fmt: skip
    status = admin_pb2.JobStatus(
        job="digits-1", name="digits", status="running", head=3, versions=80, best=2, buffered=1, buffer=2,
        buffer_age_seconds=3.0, silos=[silo], evaluations=scores, server_time=1_795_132_802, revival=revival,
    )  # fmt: skip
    return [status.SerializeToString()]


def silo_rows() -> list[bytes]:
    row = admin_pb2.Silo(
        name="north",
        status="active",
        certificate_not_after=1_795_132_800,
        connected=True,
        last_seen=1_795_132_800,
        release="0.1.0",
    )
    return [row.SerializeToString()]


def exported_model(data: bytes) -> None:
    """Replies one after another, each behind its length in two bytes."""
    replies = [parsed(admin_pb2.ExportModelReply, one) for one in tiles.parse_bundle(data)]
    spool = io.BytesIO()
    header, digest = receive(iter(replies), spool)
    assert len(spool.getvalue()) == header.bytes
    assert len(digest) == 64


def exported() -> Sequence[bytes]:
    header = admin_pb2.ExportModelHeader(version=3, digest="a" * 64, bytes=6)
    replies = [
        admin_pb2.ExportModelReply(header=header),
        *(admin_pb2.ExportModelReply(chunk=b"abc") for _ in "12"),
    ]
    return [tiles.encode_bundle([one.SerializeToString() for one in replies])]


READERS = (
    Target("audit entry, read fast", alike(parsing.parse, parse_entry), lambda: [*entries(), *story("honest").book.entries], shapes.json_document),
    Target("update statement, read fast", alike(parsing.parse_update, statements.parse_update), lambda: [signed()["update"]], shapes.json_document),
    Target("keys of an entry", lambda data: (reading._keys(data), None)[1], entries, shapes.json_document),
    Target("log of a lying server", lying_server, lies, one_lie),
    *map(file_of, ("checkpoint", "keys/log.vkey", "keys/ca.pem")),
    Target("CA of an export", ca_file, lambda: [ROOT.public_bytes(Encoding.PEM)]),
    Target("--vkey", vkey_option, vkeys, shapes.json_document),
    Target("kept receipts", kept_receipts, receipts, shapes.json_document),
    Target("--since", kept_checkpoint, lambda: [story("honest").book.notes[-1].encode()]),
    Target("sealed facts", sealed_facts, lambda: [json.dumps({"fields": FACTS, "salt": SALT.hex(), "silo": "a"}, sort_keys=True).encode()], shapes.json_document),
    Target("job status", job_status, statuses, shapes.message(admin_pb2.JobStatus)),
    Target("silo row", silo_row, silo_rows, shapes.message(admin_pb2.Silo)),
    Target("exported model", exported_model, exported),
)  # fmt: skip
