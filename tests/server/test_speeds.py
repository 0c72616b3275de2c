"""How fast silos train: heard, bounded, told to who watches, and nowhere else."""

import dataclasses
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from anabranch.errors import Reason
from anabranch.wire.limits import PER_SECOND
from server.config import ServerConfig, read_config, write_config
from server.gauges import Gauges
from server.sessions import LeaseProgress, Sessions
from server.vitals import Vitals
from tests.server.at_work import eventually, refusal
from tests.server.edge import Edge, Talk
from tests.server.harness import Server
from tests.server.test_lifecycle import entries, start


@dataclasses.dataclass
class Present:
    """Everybody, at one speed."""

    told: LeaseProgress
    here: bool = True

    def connected(self, silo: str) -> bool:
        return self.here

    def last_seen(self, silo: str) -> float:
        return 1_800_000_000.0

    def progress(self, lease: str) -> LeaseProgress:
        return self.told


def test_a_speed_is_heard_and_does_not_enter_the_log(edge: Edge) -> None:
    member = edge.enrol("north")
    before = entries(edge.server)
    with Talk(member) as talk:
        talk.hear()
        talk.beat(lease="l1", step=3, steps=20, samples_per_second=1234.5, tokens_per_second=PER_SECOND)
        heard = LeaseProgress(3, 20, 1234.5, PER_SECOND)
        eventually(lambda: edge.sessions.progress("l1") == heard, "the speed arrived")
    assert entries(edge.server) == before


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -1.0, 2 * PER_SECOND])
@pytest.mark.parametrize("field", ["samples_per_second", "tokens_per_second"])
def test_a_speed_that_is_none_is_refused(edge: Edge, field: str, speed: float) -> None:
    with Talk(edge.enrol("north")) as talk:
        talk.hear()
        talk.beat(lease="l1", step=3, steps=20, **{field: speed})
        assert refusal(talk.hear) is Reason.MALFORMED
    assert edge.sessions.progress("l1") == LeaseProgress()


@pytest.fixture
def told(server: Server) -> tuple[Any, Present]:
    job, _, [a, _] = start(server, "", "hospital-a", "hospital-b")
    server.lease(a, job)
    present = Present(LeaseProgress(3, 20, 512.0, 65536.0))
    return dataclasses.replace(server.core.jobs, presence=present), present


def test_the_speed_of_an_open_lease_is_told(told: tuple[Any, Present]) -> None:
    jobs, present = told
    [status] = jobs.going_on(())
    trains, idle = status.silos
    assert (trains.samples_per_second, trains.tokens_per_second) == (512.0, 65536.0)
    assert (idle.samples_per_second, idle.whole_bytes) == (0.0, 0)  # there is no [link]
    present.here = False  # what it said last is no longer so
    [status] = jobs.going_on(())
    assert status.silos[0].samples_per_second == 0.0


def test_prometheus_names_silos_where_the_operator_says_so(server: Server, told: tuple[Any, Present]) -> None:
    jobs, _ = told
    [status] = jobs.going_on(())
    vitals = Vitals(server.directory, Sessions(server.clock))
    for names in (False, True):
        registry = CollectorRegistry()
        registry.register(Gauges(lambda: jobs.going_on(()), vitals.look, names))
        value = registry.get_sample_value
        assert value("anabranch_job_samples_per_second", {"job": status.job}) == 512.0
        labels = {"job": status.job, "silo": "hospital-a"}
        assert value("anabranch_silo_samples_per_second", labels) == (512.0 if names else None)
        assert value("anabranch_silo_tokens_per_second", labels) == (65536.0 if names else None)
        assert ("hospital" in generate_latest(registry).decode()) == names


@pytest.mark.parametrize("name_silos", [False, True])
def test_a_setting_that_is_true_or_false_is_written_as_toml_has_it(
    edge: Edge, tmp_path: Any, name_silos: bool
) -> None:
    config = ServerConfig.model_validate(edge.config.model_dump() | {"metrics": {"name_silos": name_silos}})
    (tmp_path / "server.toml").write_text(write_config(config))
    assert read_config(tmp_path).metrics.name_silos is name_silos
