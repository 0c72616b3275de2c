"""What `job watch` shows, for Prometheus: read when it is scraped, so that nothing is told of a job that has ended.

States and reasons are closed sets; silos are counted and not named, unless server.toml says so: whoever can reach the
port is not one of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from server.core.doing import State
from server.core.revival import Outcome
from server.status import JobStatus, SiloStatus
from server.vitals import ServerStatus

Of = Callable[[JobStatus], float]
PER_JOB: dict[str, tuple[str, Of]] = {
    "anabranch_job_buffer_age_seconds": (
        "How long the oldest update has waited for its aggregation.",
        lambda job: job.buffer_age_seconds,
    ),
    "anabranch_job_buffer_size": ("Updates that make the next version.", lambda job: job.buffer),
    "anabranch_job_versions_per_hour": ("Over the newest versions.", lambda job: job.versions_per_hour),
    "anabranch_job_updates_per_minute": ("Over the newest updates.", lambda job: job.updates_per_minute),
    "anabranch_job_eta_seconds": (
        "Until the last version at this pace; 0 when it is not known.",
        lambda job: job.eta_seconds,
    ),
    "anabranch_job_late_leases": (
        "Open leases past their deadline.",
        lambda job: sum(silo.late_seconds > 0 for silo in job.silos),
    ),
    "anabranch_job_late_seconds": (
        "By how much the latest open lease is past its deadline.",
        lambda job: max((silo.late_seconds for silo in job.silos), default=0.0),
    ),
    "anabranch_job_samples_per_second": (
        "What its silos train on now, together.",
        lambda job: sum(silo.samples_per_second for silo in job.silos),
    ),
    "anabranch_job_tokens_per_second": (
        "Of those whose batches show tokens.",
        lambda job: sum(silo.tokens_per_second for silo in job.silos),
    ),
    "anabranch_job_update_bytes": (
        "Merged updates, as they were sent.",
        lambda job: sum(silo.bytes for silo in job.silos),
    ),
    "anabranch_job_update_whole_bytes": (
        "The same updates without [link]; 0 when the job has none.",
        lambda job: sum(silo.whole_bytes for silo in job.silos),
    ),
}
OfSilo = Callable[[SiloStatus], float]
PER_SILO: dict[str, tuple[str, OfSilo]] = {
    "anabranch_silo_samples_per_second": (
        "What a silo trains on now; only of silos that train.",
        lambda silo: silo.samples_per_second,
    ),
    "anabranch_silo_tokens_per_second": (
        "The same in tokens, where its batches show them.",
        lambda silo: silo.tokens_per_second,
    ),
}
SERVER = {
    "anabranch_memory_peak_bytes": ("Largest resident size so far.", "memory_peak_bytes"),
    "anabranch_disk_free_bytes": ("What updates and models may still take.", "disk_free_bytes"),
    "anabranch_disk_bytes": ("Size of the disk the blobs lie on.", "disk_bytes"),
}


class Gauges:
    """A collector of prometheus_client."""

    def __init__(
        self,
        jobs: Callable[[], list[JobStatus]],
        server: Callable[[], ServerStatus],
        name_silos: bool = False,
    ) -> None:
        self._jobs, self._server, self._name_silos = jobs, server, name_silos

    def collect(self) -> Iterator[Metric]:
        found, server = self._jobs(), self._server()
        for name, (text, of) in PER_JOB.items():
            family = GaugeMetricFamily(name, text, labels=["job"])
            for job in found:
                family.add_metric([job.job], of(job))
            yield family
        states = GaugeMetricFamily(
            "anabranch_job_silos", "Silos of a job, by what they do.", labels=["job", "state"]
        )
        for job in found:
            doing = Counter(silo.state for silo in job.silos)
            for state in get_args(State):
                states.add_metric([job.job, state], doing[state])
        yield states
        yield from _revivals(found)
        if self._name_silos:
            yield from _speeds(found)
        for name, (text, field) in SERVER.items():
            yield GaugeMetricFamily(name, text, value=getattr(server, field))


def _speeds(found: Sequence[JobStatus]) -> Iterator[Metric]:
    for name, (text, of) in PER_SILO.items():
        family = GaugeMetricFamily(name, text, labels=["job", "silo"])
        for job in found:
            for silo in job.silos:
                if of(silo):
                    family.add_metric([job.job, silo.silo], of(silo))
        yield family


def _revivals(found: Sequence[JobStatus]) -> Iterator[Metric]:
    """Of jobs with [revival]."""
    tasks = GaugeMetricFamily(
        "anabranch_job_revivals", "Tasks of revivers, by what became of them.", labels=["job", "outcome"]
    )
    teachers = GaugeMetricFamily(
        "anabranch_job_revival_teachers", "Silos whose models may teach.", labels=["job"]
    )
    for job in found:
        if job.revival is not None:
            counts: Counter[str] = Counter()
            for tally in job.revival.tallies:
                counts[tally.outcome] += tally.count
            for outcome in get_args(Outcome):
                tasks.add_metric([job.job, outcome], counts[outcome])
            teachers.add_metric([job.job], len(job.revival.teachers))
    yield tasks
    yield teachers
