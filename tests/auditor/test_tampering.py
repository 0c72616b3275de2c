"""Any byte of an export changed is found, by somebody who has none of the keys."""

import shutil

import pytest

from anabranch.errors import Refused
from auditor.export import Export
from auditor.pin import pin
from auditor.verify import verify

SAMPLES = 30  # positions per file; all of them where a signature is
OBJECT_SAMPLES = 3  # a hash does not care which byte it is


def tampered_files(told):
    return sorted(path for path in told.book.directory.rglob("*") if path.is_file())


def some(path, size):
    if path.name in ("checkpoint", "log.vkey"):
        return range(size)
    samples = OBJECT_SAMPLES if path.parent.name == "objects" else SAMPLES
    return sorted({0, size - 1, *range(3, size, max(1, size // samples))})


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned key", "key of the export"])
def test_bytes_of_every_file_count(told, pinned):
    given = told.book.signer.vkey if pinned else None
    files = [path for path in tampered_files(told) if pinned or path.parent.name == "keys"]
    assert unnoticed(Export(told.book.directory), files, given, some) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_byte_counts(told):
    """All of them, one after another, in an export that also opens sealed facts and says what was pruned."""
    told.prune("updates", 30, [(0, 2)])
    told.prune("updates", 0, [])
    shutil.rmtree(told.book.directory / "tile")  # of the shorter log: told as no evidence, and not refused
    told.book.write()
    files = tampered_files(told)
    every = unnoticed(
        Export(told.book.directory), files, told.book.signer.vkey, lambda path, size: range(size)
    )
    assert every == []
    print(
        f"{sum(path.stat().st_size for path in files)} bytes in {len(files)} files, each flipped: all refused"
    )


def test_the_readme_is_the_only_free_text(told):
    """It is for people; nothing vouches for it, and the report says so."""
    readme = told.book.directory / "README.txt"
    readme.write_text("Trust me.\n")
    export = Export(told.book.directory)
    report = verify(export, pin(export, told.book.signer.vkey)).report
    assert report.verified
    assert report.notes == ["no evidence, nothing vouches for it: README.txt"]


def unnoticed(export, files, given, positions):
    """(file, position) of every byte whose change nobody notices; the files are as before afterwards."""
    found = []
    for path in files:
        honest = path.read_bytes()
        for position in positions(path, len(honest)):
            changed = bytearray(honest)
            changed[position] ^= 1 << (position % 8)
            path.write_bytes(changed)
            if _verified(export, given):
                found.append((path.name, position))
        path.write_bytes(honest)
    assert _verified(export, given)
    return found


def _verified(export, given):
    try:
        return verify(export, pin(export, given)).report.verified
    except Refused:
        return False


def test_files_cut_short_longer_or_gone(told):
    export, vkey = Export(told.book.directory), told.book.signer.vkey
    for path in tampered_files(told):
        honest = path.read_bytes()
        for changed in (honest[:-1], honest + b"\n", honest + honest, b""):
            path.write_bytes(changed)
            assert not _verified(export, vkey), path
        path.unlink()
        if path.parent.name not in ("objects", "sealed"):
            assert not _verified(export, vkey), path
        path.write_bytes(honest)


def test_links_are_not_followed(told, tmp_path):
    export, vkey = Export(told.book.directory), told.book.signer.vkey
    path = told.book.directory / "checkpoint"
    honest = path.read_bytes()
    (tmp_path / "elsewhere").write_bytes(honest)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert not _verified(export, vkey)


def test_an_object_that_is_gone_is_named(told):
    delta = sorted((told.book.directory / "objects").iterdir())
    export, vkey = Export(told.book.directory), told.book.signer.vkey
    for path in delta:
        honest = path.read_bytes()
        path.unlink()
        report = verify(export, pin(export, vkey)).report
        path.write_bytes(honest)
        assert [missing.digest for missing in report.missing] == [path.name]
        needed = report.missing[0].kind == "statements"  # nothing else can prove what a silo said
        assert report.verified == (not needed), report.findings


def test_a_rewritten_history_needs_the_logs_key(told):
    """One entry replaced and everything re-hashed: only the signed tree head is in the way."""
    export, vkey = Export(told.book.directory), told.book.signer.vkey
    signed = told.book.notes[-1]
    told.book.entries[5] = told.book.entries[4]
    told.book.rebuild()
    forged, told.book.notes[-1] = told.book.notes[-1], signed
    told.book.write()
    findings = verify(export, pin(export, vkey)).report.findings
    assert [finding.where for finding in findings] == ["tile/entries"]

    told.book.notes[-1] = forged.rpartition("\n\n")[0] + signed[signed.rindex("\n\n") :]
    told.book.write()
    findings = verify(export, pin(export, vkey)).report.findings
    assert [finding.where for finding in findings] == ["checkpoint"]
