"""A private job by real processes: charged, trained by Opacus, claimed, spent; and what was claimed, added up again."""

from typing import Any

from tests.e2e.federation import JOB, TASK, Federation

PRIVATE = JOB.replace("batch_size = 8", 'batch_size = 8\nbuffers = "none"').replace(
    "every = 2", "every = 100"
) + (
    """
[privacy]
epsilon = 8.0
delta = 1e-3
cycles_max = 2
"""
)
CEILING = "[data.records.privacy]\nepsilon = 9.0\ndelta = 2e-3\n"


def budget(federation: Federation, name: str) -> dict[str, Any]:
    (found,) = federation.call("anabranch-silo", "budget", "--dir", federation.silo_dir(name))["bindings"]
    return dict(found)


def test_a_private_job_until_its_budget_is_spent(federation: Federation) -> None:
    federation.enrol("hospital-a", policy=CEILING)
    job = federation.submit(TASK, PRIVATE, versions=5)
    federation.approve("hospital-a", job)
    federation.agent("hospital-a")
    federation.until(lambda: federation.status(job)["head"] >= 1, "a version")
    federation.kill("hospital-a")
    federation.agent("hospital-a")
    federation.until(lambda: federation.status(job)["head"] == 2, "another one")

    def exhausted() -> bool:
        rows = federation.call("anabranch-silo", "jobs", "--dir", federation.silo_dir("hospital-a"))["jobs"]
        return [(row["cycles_left"], row["budget"].split(":")[0]) for row in rows] == [(0, "exhausted")]

    assert exhausted()
    books = budget(federation, "hospital-a")
    (of_job,) = books["jobs"]
    assert (of_job["cycles"], of_job["cycles_left"], len(books["history"])) == (2, 0, 2)
    assert {one["units"] for one in books["history"]} == {64}
    federation.kill("hospital-a")
    federation.agent("hospital-a")  # nor does another start change that
    federation.until(
        lambda: (federation.root / "hospital-a.log").read_text().count("ready for its tasks") == 3,
        "it is back",
    )
    out = federation.verified()
    vkey = out / "keys/log.vkey"
    (derived,) = federation.call("anabranch-audit", "verify", out, "--vkey", vkey)["privacy"]
    assert (derived["cycles"], derived["updates"], derived["promised"]) == (2, 2, 8.0)
    assert 0.99 * of_job["spent"] <= derived["epsilon"] <= of_job["spent"] <= 8.0
    assert len(federation.entries("lease.issued")) == 2
    assert federation.entries("lease.released") == []
    heads = [entry["detail"]["privacy"]["ledger_head"] for entry in federation.entries("update.received")]
    assert heads == [one["hash"] for one in books["history"]]
