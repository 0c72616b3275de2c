from collections import Counter

import demo_log as fed
import pytest

from anabranch.errors import Refused
from console.demo.history import read_entries, tell


def test_the_export_tells_every_update_s_fate(export) -> None:
    history = tell(read_entries(export), fed.JOB)
    fates = Counter(update.fate for update in history.updates)
    assert fates == {"merged": 80, "retired": 1}
    assert history.head.number == 40
    assert history.silos == fed.SILOS
    assert [d.decision for d in history.decisions] == ["approved"] * 5
    assert [r.code for r in history.refusals] == ["too_stale"]
    assert history.outcome == "job.completed"
    assert history.exactly_once()


def test_slow_silos_are_stale_and_leases_precede_receipts(export) -> None:
    history = tell(read_entries(export), fed.JOB)
    staleness = {silo: [u.staleness for u in history.of(silo) if u.fate == "merged"] for silo in fed.SILOS}
    assert min(staleness["tagus"]) > max(staleness["aare"])
    assert all(u.leased is not None and u.leased < u.received for u in history.updates)
    assert all(u.version - 1 - u.base == u.staleness for u in history.updates if u.fate == "merged")


def test_a_lost_update_is_seen() -> None:
    entries = [e for e in fed.federation() if e.type != "update.retired"]
    assert not tell(entries, fed.JOB).exactly_once()


def test_an_update_merged_twice_is_seen() -> None:
    entries = fed.federation()
    last = max(i for i, e in enumerate(entries) if e.type == "aggregation.performed")
    assert not tell([*entries, entries[last]], fed.JOB).exactly_once()


def test_a_log_without_the_job_says_so() -> None:
    with pytest.raises(ValueError, match=r"no job\.submitted"):
        tell(fed.federation(), "another")


def test_an_export_with_a_forged_checkpoint_is_refused(export) -> None:
    note = (export / "checkpoint").read_text()
    lines = note.splitlines()
    (export / "checkpoint").write_text(note.replace(lines[1], str(int(lines[1]) - 1), 1))
    with pytest.raises(Refused):
        list(read_entries(export))
