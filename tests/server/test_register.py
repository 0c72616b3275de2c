"""The checkpoint register: old or new, whatever happens in between."""

import errno
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch import durable
from anabranch.errors import Corrupt, Misuse
from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.note import NoteSigner
from server.audit.register import SLOT, CheckpointRegister

ORIGIN = "register.example/log"
SIGNER = NoteSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
NOTES = [sign(Checkpoint(ORIGIN, size, bytes([size]) * 32), SIGNER) for size in range(1, 12)]


@pytest.fixture
def register(tmp_path: Path) -> CheckpointRegister:
    return CheckpointRegister(tmp_path / "checkpoint")


def advanced(register: CheckpointRegister, notes: list[str]) -> None:
    before = register.read()
    for note in notes:
        register.advance(before, note)
        before = note


def test_it_holds_the_newest_note(register: CheckpointRegister) -> None:
    assert register.read() == ""
    for count, note in enumerate(NOTES, 1):
        advanced(register, [note])
        assert register.read() == note
        assert register.path.stat().st_size == 2 * SLOT
        # The one before stays until the next one is whole: 9 < 10 < 11 as numbers, not as text.
        assert count == 1 or NOTES[count - 2].encode() in register.path.read_bytes()


def test_a_write_torn_anywhere_leaves_old_or_new(register: CheckpointRegister) -> None:
    advanced(register, NOTES[:2])
    before = register.path.read_bytes()
    advanced(register, NOTES[2:3])
    after = register.path.read_bytes()
    new = [cut for cut in range(2 * SLOT + 1) if before[:cut] != after[:cut]]
    for cut in range(2 * SLOT + 1):
        register.path.write_bytes(after[:cut] + before[cut:])
        whole = after[:cut] + before[cut:] == after
        assert register.read() == (NOTES[2] if whole else NOTES[1]), cut
    assert new


def test_what_was_torn_is_written_over(register: CheckpointRegister) -> None:
    advanced(register, NOTES[:3])
    data = bytearray(register.path.read_bytes())
    data[100] ^= 1  # in the slot of the third
    register.path.write_bytes(data)
    assert register.read() == NOTES[1]
    advanced(register, NOTES[3:6])
    assert register.read() == NOTES[5]


@pytest.mark.parametrize("damage", [b"", b"text", bytes(2 * SLOT), bytes(SLOT), b"\xff" * 2 * SLOT])
def test_a_file_without_a_note_is_damage(register: CheckpointRegister, damage: bytes) -> None:
    register.path.write_bytes(damage)
    with pytest.raises(Corrupt, match="restore it from a backup"):
        register.read()
    with pytest.raises(Corrupt):
        register.advance("", NOTES[0])


def test_every_single_flipped_bit_is_seen(register: CheckpointRegister) -> None:
    advanced(register, NOTES[:1])
    data = register.path.read_bytes()
    used = len(NOTES[0].encode()) + 65
    for bit in range(8 * used):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        register.path.write_bytes(flipped)
        with pytest.raises(Corrupt):
            register.read()


def test_somebody_else_moved_it(register: CheckpointRegister) -> None:
    advanced(register, NOTES[:2])
    with pytest.raises(Corrupt, match="two servers share this state"):
        register.advance(NOTES[0], NOTES[2])
    assert register.read() == NOTES[1]


def test_a_note_that_fits_no_slot(register: CheckpointRegister) -> None:
    advanced(register, NOTES[:1])
    with pytest.raises(Misuse):
        register.advance(NOTES[0], "x" * SLOT)
    assert register.read() == NOTES[0]


def test_a_disk_that_fails_once(register: CheckpointRegister, monkeypatch: pytest.MonkeyPatch) -> None:
    advanced(register, NOTES[:2])

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "sync", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            register.advance(NOTES[1], NOTES[2])
    assert register.read() in (NOTES[1], NOTES[2])
    advanced(register, NOTES[3:5])
    assert register.read() == NOTES[4]
