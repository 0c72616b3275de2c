"""A process whose clock is wrong, or whose disk cannot be written, by order of the test and while it runs.

Below Python and below gRPC, where TLS reads its clock as well: `fault.c`, compiled here and loaded into the process.
"""

import errno
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fault.c")
READ_ONLY = errno.EROFS


@dataclass(frozen=True)
class Fault:
    """One per process. `directory` is what cannot be written while an error is ordered."""

    library: Path
    order: Path
    directory: Path

    def set(self, seconds: int = 0, error: int = 0) -> None:
        """From now on the process's clock is off by `seconds`, and writing fails with `error`."""
        with open(self.order, "r+b") as file:
            file.write(struct.pack("=qq", seconds, error))

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.library),
            "FAULT_ORDER": str(self.order),
            "FAULT_DIRECTORY": str(self.directory),
        }


def make_fault(root: Path, name: str, directory: Path) -> Fault:
    compiler = shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("needs a C compiler on Linux")
    library = root / "fault.so"
    if not library.exists():
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    order = root / f"{name}.order"
    order.write_bytes(bytes(16))
    return Fault(library, order, directory)
