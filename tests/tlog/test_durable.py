"""Durable files: what the kernel is asked, in which order, and what stands after death at each step."""

import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from anabranch import durable

CALLS = "openat,write,fchmod,fsync,fdatasync,rename,renameat,renameat2,unlink,mkdir"


def strace_works():
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="strace is missing, or may not trace here")


def traced(tmp_path, code, *options):
    """Run `code` (with the cwd below tmp_path) under strace; (exit status, its calls on files below tmp_path)."""
    work, log = tmp_path / "work", tmp_path / "trace"
    work.mkdir(exist_ok=True)
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-o",
        str(log),
        "-e",
        f"trace={CALLS}",
        *options,
        sys.executable,
        "-c",
    ]
    script = f"from anabranch import durable\n{code}"
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # bytecode files are written and renamed as well
    done = subprocess.run([*command, script], capture_output=True, text=True, cwd=work, env=environment)
    calls = re.findall(r"^\d+ +(\w+\(.*)$", log.read_text(), re.M)
    return done, [
        call for call in calls if str(work) in call or re.match(r"(rename|unlink|mkdir)\w*\(", call)
    ]


def position(calls, pattern):
    found = [i for i, call in enumerate(calls) if re.search(pattern, call)]
    assert found, f"no {pattern} in:\n" + "\n".join(calls)
    return found


@needs_strace
def test_write_syncs_the_bytes_before_the_name_and_the_directory_after(tmp_path):
    done, calls = traced(tmp_path, "durable.write('a', b'content')")
    assert done.returncode == 0, done.stderr
    [write] = position(calls, r'^write\(\d+<.*/\.a\.\w+\.tmp>, "content", 7')
    [bytes_synced] = position(calls, r"^fsync\(\d+<.*/\.a\.\w+\.tmp>")
    [renamed] = position(calls, r'^rename\w*\(.*\.tmp", .*"(.*/)?a"')
    [directory_synced] = position(calls, r"^fsync\(\d+<.*/work>\)")
    assert write < bytes_synced < renamed < directory_synced


@needs_strace
def test_rename_and_remove_sync_their_directories(tmp_path):
    work = tmp_path / "work"
    (work / "from").mkdir(parents=True)
    (work / "to").mkdir()
    (work / "from/a").write_bytes(b"content")
    done, calls = traced(tmp_path, "durable.rename('from/a', 'to/b'); durable.remove('to/b')")
    assert done.returncode == 0, done.stderr
    [renamed] = position(calls, r"^rename")
    [unlinked] = position(calls, r"^unlink")
    [source] = position(calls, r"^fsync\(\d+<.*/work/from>")
    first, second = position(calls, r"^fsync\(\d+<.*/work/to>")
    assert renamed < first < source < unlinked < second


@needs_strace
def test_make_dir_syncs_each_parent(tmp_path):
    done, calls = traced(tmp_path, "durable.make_dir('a/b')")
    assert done.returncode == 0, done.stderr
    outer, inner = position(calls, r"^mkdir")
    [outer_synced] = position(calls, r"^fsync\(\d+<.*/work>\)")
    [inner_synced] = position(calls, r"^fsync\(\d+<.*/work/a>\)")
    assert outer < outer_synced < inner < inner_synced


@needs_strace
@pytest.mark.parametrize(
    ("step", "after"),
    [
        ("fchmod:when=1", b"old"),
        ("fsync:when=1", b"old"),
        ("/^rename:when=1", b"old"),
        ("fsync:when=2", b"new"),
    ],
)
def test_killed_on_entering_any_step_the_file_is_old_or_new_and_whole(tmp_path, step, after):
    call, when = step.split(":")
    target = tmp_path / "work/a"
    target.parent.mkdir()
    target.write_bytes(b"old")
    done, _ = traced(tmp_path, "durable.write('a', b'new')", "-e", f"inject={call}:signal=KILL:{when}")
    assert done.returncode in (-9, 137)
    assert target.read_bytes() == after
    durable.write(target, b"newer")
    assert target.read_bytes() == b"newer"


@needs_strace
@pytest.mark.parametrize("call", ["fchmod", "fsync", "/^rename"])
@pytest.mark.parametrize(
    ("error", "raised"), [("EIO", "OSError"), ("ENOSPC", "Unavailable"), ("EDQUOT", "Unavailable")]
)
def test_a_failed_step_leaves_the_old_file_and_nothing_else(tmp_path, call, error, raised):
    target = tmp_path / "work/a"
    target.parent.mkdir()
    target.write_bytes(b"old")
    done, _ = traced(tmp_path, "durable.write('a', b'new')", "-e", f"inject={call}:error={error}:when=1")
    assert done.returncode == 1
    assert raised in done.stderr.splitlines()[-1]
    assert os.listdir(target.parent) == ["a"]
    assert target.read_bytes() == b"old"


def test_write_replaces_content_and_mode(tmp_path):
    path = tmp_path / "key"
    old = os.umask(0o077)
    try:
        durable.write(path, b"public", mode=0o644)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        durable.write(path, b"secret", mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"secret"
    assert os.listdir(tmp_path) == ["key"]


def test_a_missing_directory_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        durable.write(tmp_path / "missing/a", b"")


def test_repeated_steps_are_harmless(tmp_path):
    durable.remove(tmp_path / "never-there")
    durable.make_dir(tmp_path / "a/b/c", mode=0o700)
    durable.make_dir(tmp_path / "a/b/c")
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o700
    durable.write(tmp_path / "file", b"")
    with pytest.raises(FileExistsError):
        durable.make_dir(tmp_path / "file")


def test_rename_replaces(tmp_path):
    durable.write(tmp_path / "a", b"a")
    durable.write(tmp_path / "b", b"b")
    durable.rename(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"a"
    with pytest.raises(FileNotFoundError):
        durable.rename(tmp_path / "a", tmp_path / "b")


def test_sync_takes_an_open_file(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.write(b"x")
        file.flush()
        durable.sync(file.fileno())
    assert (tmp_path / "a").read_bytes() == b"x"


def test_room_is_taken_without_making_the_file_longer(tmp_path):
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        durable.reserve(fd, 1 << 20)
        found = os.fstat(fd)
        assert found.st_size == 0
        os.pwrite(fd, b"abc", 0)
        durable.begin_sync(fd, 0, 3)
        durable.reserve(fd, 0)
        assert path.read_bytes() == b"abc"
    finally:
        os.close(fd)
    if found.st_blocks:  # a file system that can
        assert found.st_blocks * 512 >= 1 << 20
