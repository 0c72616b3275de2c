"""Generate `anabranch/v1` from `proto/anabranch/v1`; with --check, fail when the committed stubs differ.

python proto/generate.py [--check]
"""

import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent
ROOT = PROTO.parent


def generate(out: Path) -> list[Path]:
    """Write stubs under `out`; return their paths relative to it."""
    sources = sorted(str(p.relative_to(PROTO)) for p in PROTO.rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *flags, *sources]) != 0:
        raise SystemExit("protoc failed: see its message above")
    return sorted(p.relative_to(out) for p in out.rglob("*_pb2*.py*"))


def main() -> None:
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
        stale = [
            p for p in fresh if not (ROOT / p).exists() or not filecmp.cmp(Path(scratch) / p, ROOT / p, False)
        ]
        orphans = {p.relative_to(ROOT) for p in (ROOT / "anabranch/v1").glob("*_pb2*.py*")} - set(fresh)
    if stale or orphans:
        names = ", ".join(map(str, [*stale, *sorted(orphans)]))
        raise SystemExit(f"stubs differ from proto/: {names}. Run `make protos` and commit the result.")


if __name__ == "__main__":
    main()
