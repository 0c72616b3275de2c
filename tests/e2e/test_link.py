"""Sparse, rounded views and updates between real processes; the log proves and replays them."""

from tests.e2e.federation import JOB, TASK, Federation

WIDE = TASK.replace(
    "torch.nn.Linear(8, 2)", "torch.nn.Sequential(torch.nn.Linear(8, 99), torch.nn.Linear(99, 2))"
)
LINK = '[link]\ndownload_density = 0.5\nupload_density = 0.25\ndownload_values = "bf16"\nupload_values = "int8"\n'


def test_a_sparse_job_survives_a_killed_server_and_replays(federation: Federation) -> None:
    for seed, name in enumerate(("hospital-a", "hospital-b")):
        federation.enrol(name, seed, pause=0.02)
        federation.agent(name)
    job = federation.submit(task=WIDE, text=JOB + LINK, silos=2, buffer=2, versions=8)
    for name in ("hospital-a", "hospital-b"):
        federation.approve(name, job)
    federation.until(lambda: federation.status(job)["head"] >= 2, "two versions")
    federation.kill("server")
    federation.serve()
    status = federation.finish(job)
    assert status["head"] == 8
    federation.verified()
    encoded = {entry["detail"]["version"]: entry["detail"] for entry in federation.entries("model.encoded")}
    assert sorted(encoded) == list(range(9))
    leased = {
        entry["detail"]["version"]: entry["detail"]["view_sha256"]
        for entry in federation.entries("lease.issued")
    }
    assert leased == {version: encoded[version]["view_sha256"] for version in leased}
    whole = federation.entries("model.published")[0]["detail"]["bytes"]
    assert all(entry["detail"]["bytes"] < whole for entry in federation.entries("update.received"))
    for silo in status["silos"]:
        assert silo["whole_bytes"] == silo["merged"] * whole > 2 * silo["bytes"] > 0
