"""Densities that fall, and a tier of its own, between real processes; the log proves and replays what each silo got."""

import hashlib
from typing import Any

from tests.e2e.federation import JOB, Federation
from tests.e2e.test_link import WIDE

TIERED = """
[link]
download_density = 0.5
upload_density = 0.5
download_decay = 0.5
upload_decay = 0.5
decay_every = 3
[link.tiers.slow]
silos = ["hospital-b"]
download_density = 0.125
upload_density = 0.0625
upload_values = "int8"
"""
TIER = {"hospital-a": None, "hospital-b": "slow"}


def test_tiers_and_a_schedule_survive_a_killed_server_and_replay(federation: Federation) -> None:
    for seed, name in enumerate(TIER):
        federation.enrol(name, seed, pause=0.02)
        federation.agent(name)
    job = federation.submit(task=WIDE, text=JOB + TIERED, silos=2, buffer=2, versions=8)
    for name in TIER:
        federation.approve(name, job)
    federation.until(lambda: federation.status(job)["head"] >= 2, "two versions")
    federation.kill("server")
    federation.serve()
    assert federation.finish(job)["head"] == 8
    out = federation.verified()

    views = {(one["version"], one.get("tier")): one for one in details(federation, "model.encoded")}
    assert set(views) == {(version, tier) for version in range(9) for tier in TIER.values()}
    for (version, tier), one in views.items():
        density = (0.125 if tier else 0.5) * 0.5 ** (version // 3)
        assert one["density"] == density.hex()
    leases = details(federation, "lease.issued")
    for one in leases:
        assert one["view_sha256"] == views[one["version"], TIER[one["silo"]]]["view_sha256"]
    assert {(one["silo"], one["kind"]) for one in leases} == {
        (name, kind) for name in TIER for kind in ("train", "evaluate")
    }

    sizes: dict[str, dict[int, int]] = {name: {} for name in TIER}
    for one in details(federation, "update.received"):
        data = (out / "objects" / one["delta_sha256"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == one["delta_sha256"]
        sizes[one["silo"]][one["version"]] = one["bytes"]
    assert max(sizes["hospital-b"].values()) < min(sizes["hospital-a"].values())
    first, last = sizes["hospital-a"][0], sizes["hospital-a"][max(sizes["hospital-a"])]
    assert last < first / 2  # 0.5 of the entries, then 0.125


def details(federation: Federation, type: str) -> list[dict[str, Any]]:
    return [entry["detail"] for entry in federation.entries(type)]
