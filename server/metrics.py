"""What Prometheus scrapes; `server.health` serves it. What happens to jobs is counted from the log's own entries.

Labels are closed sets (reason codes, states, method names, job ids), never text from outside.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, Info

from anabranch.wire import canonical

RELEASE = Info("anabranch", "Release of this server.")

UPDATES_RECEIVED = Counter("anabranch_updates_received_total", "Updates admitted.", ["job"])
UPDATES_MERGED = Counter("anabranch_updates_merged_total", "Updates that became part of a version.", ["job"])
UPDATES_REFUSED = Counter("anabranch_updates_refused_total", "Updates refused, by reason code.", ["reason"])
UPDATES_RETIRED = Counter("anabranch_updates_retired_total", "Updates admitted and never merged.", ["reason"])
LEASES_RELEASED = Counter("anabranch_leases_released_total", "Tasks that failed, by reason code.", ["reason"])
UPDATE_STALENESS = Histogram(
    "anabranch_update_staleness_versions",
    "Head minus base of merged updates, at aggregation.",
    ["job"],
    buckets=(0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89),
)

REVIVALS_PERFORMED = Counter("anabranch_revivals_performed_total", "Results of revivers.", ["job"])
REVIVALS_USED = Counter("anabranch_revivals_used_total", "Results that were added to a version.", ["job"])
REVIVALS_SKIPPED = Counter(
    "anabranch_revivals_skipped_total",
    "Tasks of revivers without a result, and results that were not used, by reason.",
    ["reason"],
)
REVIVAL_SECONDS = Histogram(
    "anabranch_revival_seconds",
    "What a reviver says a result took it.",
    buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 600),
)

INTAKE_SECONDS = Histogram(
    "anabranch_intake_seconds",
    "From an update whose bytes are safe to its receipt: decision, entry, commit, proof.",
    buckets=(
        0.001,
        0.002,
        0.003,
        0.004,
        0.005,
        0.006,
        0.008,
        0.01,
        0.015,
        0.02,
        0.03,
        0.05,
        0.1,
        0.3,
        1,
        3,
        10,
    ),
)

JOB_HEAD = Gauge("anabranch_job_head_version", "Newest model version of a job.", ["job"])
JOB_BUFFERED = Gauge("anabranch_job_buffered_updates", "Updates that wait to be aggregated.", ["job"])
AGGREGATION_SECONDS = Histogram(
    "anabranch_aggregation_seconds",
    "From frozen inputs to a published version.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)

SESSIONS = Gauge("anabranch_sessions", "Agents connected now.")
CALLS = Counter("anabranch_calls_total", "Calls that ended, by method and gRPC status.", ["method", "status"])
CALLS_OPEN = Gauge("anabranch_calls_open", "Calls in flight.")
AUTH_FAILURES = Counter("anabranch_auth_failures_total", "Callers turned away.", ["reason", "method"])
BYTES_IN = Counter("anabranch_received_bytes_total", "Message bytes received.")
BYTES_OUT = Counter("anabranch_sent_bytes_total", "Message bytes sent.")

LOG_ENTRIES = Gauge("anabranch_log_entries", "Entries in the audit log.")
CHECKPOINT_TIME = Gauge(
    "anabranch_log_checkpoint_timestamp_seconds", "When the newest checkpoint was signed, unix time."
)
CERTIFICATE_END = Gauge(
    "anabranch_certificate_not_after_timestamp_seconds", "When a certificate of this server ends.", ["which"]
)


def observe(type: str, job: str | None, detail: Mapping[str, Any]) -> None:
    """Count one entry that has become durable."""
    LOG_ENTRIES.inc()
    CHECKPOINT_TIME.set_to_current_time()
    if type == "update.received":
        UPDATES_RECEIVED.labels(job).inc()
        JOB_BUFFERED.labels(job).inc()
    elif type == "update.refused":
        UPDATES_REFUSED.labels(detail["code"]).inc()
    elif type == "update.retired":
        UPDATES_RETIRED.labels(detail["reason"]).inc()
        JOB_BUFFERED.labels(job).dec()
    elif type == "lease.released":
        LEASES_RELEASED.labels(detail["reason"]).inc()
    elif type == "aggregation.performed":
        UPDATES_MERGED.labels(job).inc(len(detail["inputs"]))
        JOB_BUFFERED.labels(job).dec(len(detail["inputs"]))
        JOB_HEAD.labels(job).set(detail["version"])
        for one in detail["inputs"]:
            UPDATE_STALENESS.labels(job).observe(one["staleness"])
        if detail["revival"] is not None:
            REVIVALS_USED.labels(job).inc()
    elif type == "revival.performed":
        REVIVALS_PERFORMED.labels(job).inc()
        REVIVAL_SECONDS.observe(canonical.from_hexfloat(detail["seconds"]))
    elif type == "revival.skipped":
        REVIVALS_SKIPPED.labels(detail["reason"]).inc()


def total(counter: Counter) -> float:
    """What a counter without labels has counted."""
    [metric] = counter.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))


def restore(entries: int, jobs: Iterable[tuple[str, int, int]]) -> None:
    """Gauges after a start: log size, and (job, head, updates waiting) of every job."""
    LOG_ENTRIES.set(entries)
    for job, head, waiting in jobs:
        JOB_HEAD.labels(job).set(head)
        JOB_BUFFERED.labels(job).set(waiting)
