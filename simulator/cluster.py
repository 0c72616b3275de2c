"""Runs as tasks of a Ray cluster. Job folders and data lie under the same paths on all of its machines."""

import os
import socket
from collections.abc import Sequence
from typing import Any

from anabranch.errors import Reason, Refused, Unavailable
from simulator.work import ENVIRONMENT, Done, Plan, run

LOCAL = "local"  # instead of an address: a cluster of this machine, for as long as it takes
KNOCK_SECONDS = 10
STORE = 256 * 2**20  # bytes of shared memory of a local cluster: results are small


def by_ray(plans: Sequence[Plan], address: str, processes: int, done: Done) -> None:
    """Returns when all have ended; when anything is raised, the others are cancelled first. Raises Refused without ray."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise Refused(Reason.NOT_FOUND, "--ray needs ray: pip install 'anabranch[ray]'") from error
    _connect(ray, address, processes)
    task = ray.remote(num_cpus=1, runtime_env={"env_vars": ENVIRONMENT})(run)
    numbers = {task.remote(plan): number for number, plan in enumerate(plans)}
    try:
        while numbers:
            for ended in ray.wait(list(numbers))[0]:
                done(numbers.pop(ended), _result(ray, ended))
    finally:
        for unfinished in numbers:
            ray.cancel(unfinished, force=True)
        ray.shutdown()


def _connect(ray: Any, address: str, processes: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        ray.init(
            address=LOCAL, num_cpus=processes, include_dashboard=False, object_store_memory=STORE, **quiet
        )
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address}: {error}; `ray start --head` tells its address"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _result(ray: Any, ended: Any) -> Any:
    try:
        return ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Refused) else error from error
    except ray.exceptions.RayError as error:
        raise Unavailable(f"the cluster lost a run: {error}") from error
