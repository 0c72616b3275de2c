"""No parser is left out: whatever function of the product hands bytes or text to a decoder is reached by the table.

That it is reached is seen, not claimed: the seeds of every target run under a profiler.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from anabranch.terms import parse_terms
from tests.fuzz.table import TARGETS
from tests.fuzz.target import check

PACKAGES = ("anabranch", "server", "silo_agent", "reviver", "auditor", "console")
DECODERS = {
    "loads", "_decode", "FromString", "model_validate", "model_validate_json", "validate_json", "safe_open",
    "load_pem_x509_certificates", "load_pem_x509_certificate", "load_der_x509_certificate", "load_der_x509_csr",
    "load_pem_private_key", "from_public_bytes", "b64decode", "fromisoformat", "fromhex", "from_bytes", "urlsplit",
    "Requirement", "readline", "read_text",
}  # fmt: skip
# Not what another party sends: why each is left out.
OWN_ROWS = "rows the server wrote into its own database"
OWN_CHILD = "an answer of a process of ours that runs no job's code after it was given"
OWN_HASH = "a number made of a hash"
BELIEVED = "what the agent tells its training process, which believes it"
SHOWN = "a log, shown as it is to who started the process"
OURS = {
    "anabranch/tlog/entry.py:uuid7": "a number made of our own random bytes",
    "console/demo/history.py:read_entries": "the demo's own export, which the auditor has verified",
    "console/demo/local.py:main": OWN_CHILD,
    "console/demo/measure.py:_measure": OWN_CHILD,
    "console/demo/measure.py:audit": OWN_CHILD,
    "console/drawing.py:page": "a style sheet of the package",
    "console/demo/processes.py:tail": SHOWN,
    "reviver/device.py:_trial": OWN_CHILD,
    "reviver/runner.py:_set_up": BELIEVED,
    "server/vitals.py:resident": "what the kernel says of this process",
    "server/card.py:_revivals": OWN_ROWS,
    "server/card.py:model_card": OWN_ROWS,
    "server/step.py:load": OWN_ROWS,
    "server/aggregation.py:_step": OWN_ROWS,
    "server/audit/export.py:_write_sealed": OWN_ROWS,
    "server/lifecycle.py:_note_best": OWN_ROWS,
    "server/lifecycle.py:end_revivals": OWN_ROWS,
    "server/retention.py:_in_hand": OWN_ROWS,
    "server/reviving.py:_describe": OWN_ROWS,
    "server/reviving.py:_take": OWN_ROWS,
    "server/status.py:_revival": OWN_ROWS,
    "server/status.py:_evaluations": OWN_ROWS,
    "silo_agent/enrol.py:_ask": "a token that the join bundle's schema has held to 64 hex digits",
    "silo_agent/hub.py:_secret": "a file with a token that the person who starts the command names",
    "silo_agent/probe.py:handshake": "a certificate that TLS has verified against the pinned CA",
    "silo_agent/training/channel.py:receive": BELIEVED,
    "silo_agent/training/course.py:seed_of": OWN_HASH,
    "silo_agent/training/initial.py:main": OWN_CHILD,
    "silo_agent/training/isolation.py:_probe": OWN_CHILD,
    "silo_agent/training/isolation.py:_ways": OWN_HASH,
    "silo_agent/training/runner.py:_set_up": BELIEVED,
    "silo_agent/training/huggingface.py:_last_save": "a save of the job's own trainer, read where that runs",
    "silo_agent/training/script.py:__init__": "the job file beside a script that its author starts by hand",
    "silo_agent/training/task.py:split": OWN_HASH,
    "silo_agent/trial.py:_tail": SHOWN,
}


def decoding() -> Iterator[tuple[str, str, int]]:
    """(file, function, first line) of every function with a call of a decoder in it."""
    for package in PACKAGES:
        for path in sorted(Path(package).rglob("*.py")):
            if "v1" in path.parts or "migrations" in path.parts:
                continue
            for function in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and _decodes(function):
                    yield str(path), function.name, function.lineno


def _decodes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return bool(names & DECODERS)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_decoder_of_the_product_is_reached() -> None:
    here, reached = str(Path.cwd()) + "/", set()
    parse_terms.cache_clear()  # or terms that another test has read are not read again

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(here):
            reached.add((frame.f_code.co_filename.removeprefix(here), frame.f_code.co_name))

    for target in TARGETS.values():
        seeds = target.seeds()
        sys.setprofile(see)
        try:
            for seed in seeds:
                check(target, seed)
        finally:
            sys.setprofile(None)
    missing = {f"{file}:{name}" for file, name, _ in decoding() if (file, name) not in reached}
    assert not missing - OURS.keys(), "\n".join(sorted(missing - OURS.keys()))
    assert not OURS.keys() - missing, "these are reached after all"


def test_the_public_table_is_this_one() -> None:
    page = Path("docs/fuzzing.md").read_text("utf-8")
    targets, found = page.split("## Found")
    assert (
        set(re.findall(r"^\| (?!target|command|`|---)([^|]+?) \|", targets, re.MULTILINE)) == TARGETS.keys()
    )
    named = set(re.findall(r"`(test_\w+)`", found))
    files = sorted(Path("tests/fuzz").glob("test_findings*.py"))
    defined = {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert named == defined
