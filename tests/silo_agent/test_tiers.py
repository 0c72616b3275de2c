"""What a silo of a tier is told before it approves, and which view it takes."""

import os
from pathlib import Path

import pytest

from anabranch.errors import Reason, Refused
from anabranch.tlog.entry import Target
from anabranch.tlog.note import NoteVerifier
from anabranch.wire import canonical
from silo_agent.approval import describe
from silo_agent.fetch import fetch_model
from silo_agent.messages import View
from silo_agent.receipts import LogView
from tests.silo_agent.test_fetch import JOB, Source
from tests.silo_agent.test_models import proposal, terms
from tests.silo_agent.world import ORIGIN, MemoryLog

LINK = """[link]
download_density = 0.5
upload_decay = 0.5
decay_every = 20
[link.tiers.slow]
silos = ["clinic-b"]
upload_density = 0.0625
upload_values = "int8"
"""


@pytest.mark.parametrize(
    ("silo", "said"),
    [
        ("clinic-a", ", of it the largest 100.000% as fp32, times 0.5 every 20 versions per cycle"),
        ("clinic-b", ", of it the largest 6.250% as int8, times 0.5 every 20 versions per cycle"),
    ],
)
def test_who_approves_is_told_what_leaves_this_silo(silo: str, said: str) -> None:
    assert said in dict(describe(proposal(terms(adapter=LINK)), silo))["you send"]


@pytest.mark.parametrize(("logged", "taken"), [("slow", True), ("", False), ("near", False)])
def test_a_view_that_the_log_has_for_another_tier_is_not_used(
    logged: str, taken: bool, tmp_path: Path
) -> None:
    log, data = MemoryLog(), os.urandom(1000)
    asked = View(3, canonical.sha256(data), len(data))
    detail = {
        "version": 3,
        "tier": logged or None,
        "density": canonical.hexfloat(0.5),
        "encoding": "bf16",
        "view_sha256": asked.digest,
        "bytes": len(data),
    }
    receipt = log.append("model.encoded", detail, Target(kind="model", id=f"{JOB}/3"), job=JOB)
    verifier = NoteVerifier.from_vkey(log.signer.vkey)
    view = LogView(tmp_path / "view.json", tmp_path / "evidence", ORIGIN, verifier, log.consistency)
    source, folder = Source((receipt,), data=data, view=asked), tmp_path / "models"

    def fetch() -> Path:
        journal = tmp_path / "receipts.jsonl"
        return fetch_model(source, view, JOB, asked, folder, journal, 2, _expand, "slow")

    if taken:
        assert fetch().read_bytes() == data[::-1]
        return
    with pytest.raises(Refused, match="tier") as refused:
        fetch()
    assert refused.value.code is Reason.DIGEST_MISMATCH
    assert not list(folder.glob("*.safetensors"))


def _expand(packed: Path, whole: Path) -> None:
    whole.write_bytes(packed.read_bytes()[::-1])
