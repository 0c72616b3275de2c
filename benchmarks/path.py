"""The path of an update, measured: `python -m benchmarks.path`.

Every figure that has a reference is a ratio taken in one run. Needs root for two of them (bytes on the wire, the memory
bound) and says so without. The results are a table, `path.json` and `path.svg`.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import memory, pressure, rounds
from benchmarks.gauge import in_a_network_of_its_own
from benchmarks.path_picture import draw
from console.demo.processes import forget_proxies

Say = Callable[[str], None]
PARTS = ("rounds", "memory", "huge", "latency", "neighbour", "sessions", "recovery")
MB = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB of a model, for `rounds`"
    )
    parser.add_argument("--silos", type=int, default=4, help="silos at once, for `rounds`")
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs, for `rounds`")
    parser.add_argument("--scratch", type=Path, help="a directory on the disk to measure, with 60 GB free")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    in_a_network_of_its_own()
    forget_proxies()
    given.output.mkdir(parents=True, exist_ok=True)
    results = _load(given.output / "path.json")
    results["machine"] = {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    console = Console()
    for part in given.only:
        console.rule(part)
        results[part] = _measure(part, given, results.get(part), lambda line: console.print("  " + line))
        (given.output / "path.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(table(results))
    draw(results, given.output / "path.svg")
    console.print(f"{given.output / 'path.json'}  {given.output / 'path.svg'}")


def _load(path: Path) -> dict[str, Any]:
    """What an earlier run found: parts can be measured one at a time."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _measure(part: str, given: argparse.Namespace, before: Any, say: Say) -> Any:
    def scratched(measure: Callable[[Path], Any]) -> Any:
        root = Path(tempfile.mkdtemp(prefix="anabranch-bench-", dir=given.scratch))
        try:
            return measure(root / "run")
        finally:
            shutil.rmtree(root, ignore_errors=True)

    match part:
        case "rounds":
            kept = {one["model_bytes"]: one for one in before or ()}
            for size in given.sizes:
                say(f"{size} MB, {given.silos} silos at once")
                found = scratched(partial(_rounds, size * MB, given, say))
                kept[found["model_bytes"]] = found
            return [kept[size] for size in sorted(kept)]
        case "memory":
            return [
                asdict(scratched(lambda r, n=n: memory.round_in_bounds(r, 1000 * MB, n, say)))
                for n in (4, 16)
            ]
        case "huge":
            return scratched(partial(_memory, 10_000 * MB, 1, say))
        case "latency":
            return scratched(lambda r: pressure.latency(r, say))
        case "neighbour":
            return scratched(lambda r: pressure.neighbour(r, say))
        case "sessions":
            return asdict(scratched(lambda r: pressure.sessions(r, 200, say)))
        case _:
            return asdict(scratched(lambda r: pressure.recovery(r, say)))


def _rounds(size: int, given: argparse.Namespace, say: Say, root: Path) -> dict[str, Any]:
    return rounds.measure(root, size, given.silos, given.pairs, say).document()


def _memory(size: int, silos: int, say: Say, root: Path) -> dict[str, Any]:
    return asdict(memory.round_in_bounds(root, size, silos, say))


def table(results: dict[str, Any]) -> Table:
    """Every figure beside its bound."""
    made = Table("what", "measured", "bound", title="The path of an update")
    for one in results.get("rounds", ()):
        name = f"{one['model_bytes'] / MB:g} MB × {one['silos']}"
        row = made.add_row
        row(f"{name}: ingest / bare durable", f"{one['ingest_of_durable_reference']:.2f}", "≥ 0.60")
        row(f"{name}: ingest / bare, nothing on disk", f"{one['ingest_of_memory_reference']:.2f}", "")
        row(f"{name}: round / bare durable", f"{one['round_of_durable_reference']:.2f}", "≤ 1.60")
        row(f"{name}: server CPU per GB on the wire", f"{one['server_cpu_seconds_per_gb']:.2f} s", "≤ 2 s")
        wire = one["wire_of_payload"]
        row(f"{name}: wire / payload", f"{wire:.4f}" if wire else "not measured", "≤ 1.02")
    held = [*results.get("memory", ()), *([results["huge"]] if "huge" in results else ())]
    for one in held:
        name = f"{one['model_bytes'] / 1e9:g} GB × {one['silos']}"
        made.add_row(f"{name}: server's peak", f"{one['server_peak'] / 2**20:.0f} MiB", "≤ 400 MiB")
        made.add_row(f"{name}: agent's peak", f"{one['agent_peak'] / 2**20:.0f} MiB", "≤ 151 MiB")
    if len(found := results.get("memory", ())) == 2:
        slope = (found[1]["server_peak"] - found[0]["server_peak"]) / 2**20 / 12
        made.add_row("server's peak per further silo", f"{slope:.1f} MiB", "≈ 0")
    for name, one in results.get("latency", {}).items():
        label = name.replace("_", " ")
        made.add_row(f"intake p99, {label}", f"≤ {1000 * one['intake_p99_at_most']:.0f} ms", "≤ 10 ms")
    if "neighbour" in results:
        made.add_row("p99 beside a silo at line rate", f"{results['neighbour']['ratio']:.2f} ×", "≤ 2 ×")
    if "sessions" in results:
        one = results["sessions"]
        used = f"{100 * one['cpu_of_one_core']:.1f} % of a core, {one['bytes_each'] / 1024:.0f} KiB each"
        made.add_row(f"{one['silos']} idle sessions", used, "")
    if "recovery" in results:
        one = results["recovery"]
        made.add_row("server killed → next update", f"{one['server_killed_to_accepted']:.1f} s", "≤ 10 s")
        made.add_row("silo killed → named in the log", f"{one['silo_killed_to_named']:.1f} s", "≤ 10 s")
    return made


if __name__ == "__main__":
    main()
