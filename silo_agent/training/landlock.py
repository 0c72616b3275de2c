"""Landlock: a process gives up, for itself and its children, every file and port it was not left.

Kernel API: https://docs.kernel.org/userspace-api/landlock.html (system calls 444 to 446, the same number on every
architecture). Rights a kernel does not know yet are left out, so an older kernel protects less; `abi` says which it
is. Only the standard library is imported: this runs before anything else in the training process.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # flag of create_ruleset
_PATH_BENEATH = 1  # rule type
_NO_NEW_PRIVS = 38  # prctl

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # since ABI 2, 3 and 5
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

LIST: Final = _READ_DIR  # names below a folder, not contents
READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE: Final = _READ_FILE | _WRITE_FILE | _READ_DIR | _IOCTL_DEV
CHANGE: Final = _READ_FILE | _WRITE_FILE | _READ_DIR | _TRUNCATE  # what is there already
WRITE: Final = (
    READ | _WRITE_FILE | _TRUNCATE | _REFER | _REMOVE_DIR | _REMOVE_FILE
    | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM
)  # fmt: skip

_TCP = 0b11  # bind and connect, since ABI 4
# Since ABI 6. Abstract sockets belong to a network: those of one's own lead nowhere else, and NCCL opens some.
_ABSTRACT_SOCKETS, _SIGNALS = 0b01, 0b10

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none or it is switched off."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return max(int(version), 0)


def restrict(rules: Iterable[tuple[Path, int]], *, own_network: bool) -> None:
    """Leave this process the given rights below the given paths and nothing else; paths that do not exist are
    skipped.

    `own_network`: of this job alone, where its processes may speak to each other; otherwise TCP is denied.
    Irrevocable, for this thread and what it starts: call it while there is one thread. It also denies tracing,
    signalling and reading /proc/PID/mem of any process outside. It does not govern connecting to a UNIX socket by
    path, nor UDP. Raises OSError; the process is then not restricted.
    """
    handled = _handled(version := abi())
    # struct landlock_ruleset_attr grew by one field each: an older kernel refuses the longer forms.
    fields = (handled, *((0, _SIGNALS) if own_network else (_TCP, _SIGNALS | _ABSTRACT_SOCKETS)))[
        : 1 if version < 4 else 2 if version < 6 else 3
    ]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _handled(version: int) -> int:
    """Every right this kernel knows of: what is not handled is not denied."""
    if not version:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock")
    known = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    return (1 << known) - 1


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return  # what cannot be reached needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_A_FILE
        attributes = struct.pack("=Qi", rights, fd)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), attributes, ctypes.c_uint32(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock system call {number}: {os.strerror(code)}")
    return result
