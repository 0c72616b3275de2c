"""The canonical archive: equal folders, equal bytes; nothing else unpacks."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import Reason, Refused
from anabranch.wire import limits
from silo_agent.training import archive

part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(
    lambda name: not name.endswith(".pyc") and name != "__pycache__"
)
names = st.lists(part, min_size=1, max_size=3).map("/".join)


def build(*members: tuple[tarfile.TarInfo, bytes], end: int = 1024) -> bytes:
    """An archive of anyone's making."""
    blocks = [m.tobuf(tarfile.USTAR_FORMAT) + c + bytes(-len(c) % 512) for m, c in members]
    return b"".join(blocks) + bytes(end)


def plain(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "lib" / "__pycache__").mkdir(parents=True)
    (folder / "job.toml").write_text("[job]")
    (folder / "task.py").write_bytes(b"x" * 512)
    (folder / "lib" / "net.py").write_text("")
    (folder / "lib" / "__pycache__" / "net.cpython-311.pyc").write_bytes(b"cache")
    (folder / "stale.pyc").write_bytes(b"cache")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    return folder


def test_packs_what_belongs_to_the_job_in_one_form(code: Path, tmp_path: Path) -> None:
    data = archive.pack(code)
    os.chmod(code / "task.py", 0o700)
    os.utime(code / "job.toml", (1, 1))
    assert archive.pack(code) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as standard:  # any tar reads it
        assert standard.getnames() == ["job.toml", "lib/net.py", "task.py"]

    archive.unpack(data, tmp_path / "out" / "archive")
    assert (tmp_path / "out" / "archive" / "task.py").read_bytes() == b"x" * 512
    assert archive.pack(tmp_path / "out" / "archive") == data
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["archive"]
    assert archive.read(data, "job.toml") == b"[job]"
    with pytest.raises(FileExistsError):
        archive.unpack(data, tmp_path / "out" / "archive")
    with pytest.raises(Refused) as refused:
        archive.read(data, "missing.py")
    assert refused.value.code == Reason.NOT_FOUND


@settings(max_examples=15, deadline=None)  # each file is synced to the disk
@given(files=st.dictionaries(names, st.binary(max_size=1500), max_size=6))
def test_what_is_packed_unpacks_to_the_same(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    for name, content in files.items():
        path = folder / "in" / name
        if any((folder / "in" / parent).is_file() for parent in Path(name).parents) or path.is_dir():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "in").mkdir(exist_ok=True)
    data = archive.pack(folder / "in")
    archive.unpack(data, folder / "out")
    assert {
        str(p.relative_to(folder / "out")): p.read_bytes() for p in (folder / "out").rglob("*") if p.is_file()
    } == files
    assert archive.pack(folder / "out") == data


@given(flip=st.integers(min_value=0), value=st.integers(min_value=1, max_value=255))
def test_a_changed_byte_is_refused_or_is_content(flip: int, value: int) -> None:
    data = bytearray(build(plain("a.py", b"abc"), plain("b.py", b"d" * 512)))
    at = flip % len(data)
    data[at] ^= value
    if 512 <= at < 515 or 1536 <= at < 2048:  # the content of the two files
        assert archive.read(bytes(data), "a.py")
    else:
        with pytest.raises(Refused) as refused:
            archive.read(bytes(data), "none.py")
        assert refused.value.code in (Reason.MALFORMED, Reason.SIZE_LIMIT)


HOSTILE = {
    "traversal": build(plain("../evil.py")),
    "inner traversal": build(plain("a/../../evil.py")),
    "absolute": build(plain("/etc/passwd")),
    "hidden": build(plain(".ssh/authorized_keys")),
    "empty part": build(plain("a//b.py")),
    "symbolic link": build(plain("a.py", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": build(plain("a.py", b"", type=tarfile.LNKTYPE, linkname="b.py")),
    "device": build(plain("a.py", b"", type=tarfile.CHRTYPE)),
    "fifo": build(plain("a.py", b"", type=tarfile.FIFOTYPE)),
    "folder": build(plain("lib", b"", type=tarfile.DIRTYPE)),
    "setuid": build(plain("a.py", mode=0o4755)),
    "owner": build(plain("a.py", uid=1)),
    "time": build(plain("a.py", mtime=1)),
    "out of order": build(plain("b.py"), plain("a.py")),
    "repeated": build(plain("a.py"), plain("a.py")),
    "file and folder": build(plain("a"), plain("a/b.py")),
    "padding": build(plain("a.py"))[:513] + b"y" + build(plain("a.py"))[514:],
    "no end": build(plain("a.py"), end=0),
    "half an end": build(plain("a.py"), end=512),
    "more after the end": build(plain("a.py"), end=1536),
    "cut short": build(plain("a.py", b"x" * 2000))[:1024],
    "empty": b"",
    "not an archive": b"PK\3\4" * 300,
    "pax": tarfile.TarInfo("ä.py").tobuf(tarfile.PAX_FORMAT) + bytes(1024),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_refuses_what_is_not_canonical_and_writes_nothing(what: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        archive.unpack(HOSTILE[what], tmp_path / "in" / "archive")
    assert refused.value.code == Reason.MALFORMED
    assert not (tmp_path / "in").exists()


def test_bounds_hold_before_memory_is_taken(tmp_path: Path) -> None:
    declared = plain("a.py")
    declared[0].size = limits.ARCHIVE + 1
    many = build(*(plain(f"{n:05}.py", b"") for n in range(archive.FILES + 1)))
    for data in (bytes(limits.ARCHIVE + 1), build(declared), many):
        with pytest.raises(Refused) as refused:
            archive.unpack(data, tmp_path / "archive")
        assert refused.value.code == Reason.SIZE_LIMIT


def test_pack_refuses_links_odd_names_and_data(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "a.py").symlink_to("/etc/passwd")
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "my task.py").write_text("")
    (tmp_path / "big").mkdir()
    with open(tmp_path / "big" / "weights.bin", "wb") as file:
        file.truncate(limits.ARCHIVE)
    codes = {}
    for folder in ("link", "name", "big"):
        with pytest.raises(Refused) as refused:
            archive.pack(tmp_path / folder)
        codes[folder] = refused.value.code
    assert codes == {"link": Reason.MALFORMED, "name": Reason.MALFORMED, "big": Reason.SIZE_LIMIT}
