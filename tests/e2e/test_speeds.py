"""The speed of training, from the training process to who watches and to who scrapes."""

import re

from tests.e2e.federation import Federation


def test_the_speed_of_training_reaches_who_watches(federation: Federation) -> None:
    federation.enrol("hospital-a", pause=0.2)  # seconds a step, of 8 records
    federation.agent("hospital-a")
    job = federation.submit(steps=60, versions=1)
    federation.approve("hospital-a", job)

    def speed() -> float:
        [silo] = federation.status(job)["silos"]
        return float(silo["samples_per_second"])

    def scraped() -> float:
        name = f'anabranch_job_samples_per_second{{job="{job}"}}'
        found = re.search(rf"^{re.escape(name)} (\S+)", federation.metrics(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    federation.until(lambda: 0 < speed() < 45 and 0 < scraped() < 45, "a speed that this pause allows")
    assert federation.finish(job)["head"] == 1
    assert speed() == 0
