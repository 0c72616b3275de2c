"""Following jobs: what the server says of them again and again, on a terminal, in a log, or as lines of JSON."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from anabranch.errors import Unavailable
from anabranch.v1 import admin_pb2
from anabranch.wire.status import from_rpc_error
from console.board import alarms, board, line
from console.client import Admin, presentable
from console.documents import snapshot

ENDED = ("completed", "aborted")
AWAY = "the server does not answer; what it said last stands, and it is asked again every second (Ctrl-C to leave)"
RECONNECT_SECONDS = 1.0

Looks = Iterable[admin_pb2.Overview | None]


def overviews(admin: Admin, job: str, interval: float) -> Iterator[admin_pb2.Overview | None]:
    """One job, or ("") every job that has not ended, until none of them goes on.

    Once there was an answer, a server that goes away is waited for; None says so. Raises grpc.RpcError for anything
    else: the job is unknown, or there was no server to begin with.
    """
    request = admin_pb2.WatchRequest(job=job, interval_seconds=interval)
    seen = False
    while True:
        try:
            for overview in admin.stub.Watch(request, wait_for_ready=seen):
                seen = True
                yield presentable(overview)
                if _over(overview):
                    return
        except grpc.RpcError as error:
            if not seen or not isinstance(from_rpc_error(error), Unavailable):
                raise
        yield None
        time.sleep(RECONNECT_SECONDS)


def follow(looks: Looks, form: Literal["screen", "lines", "json"], every_silo: bool) -> list[str]:
    """Show what comes; how each job was at the end. `screen` redraws and needs a terminal."""
    last = admin_pb2.Overview()
    show = {"screen": _on_screen, "lines": _in_lines, "json": _as_json}[form]
    for overview in show(looks, every_silo):
        last = overview
        if _over(overview):
            break
    return [status.status for status in last.jobs]


def show_once(looks: Looks, as_json: bool, every_silo: bool) -> None:
    """What is said first, and no more."""
    overview = next(found for found in looks if found is not None)
    if as_json:
        print(_dumped(overview))
    else:
        Console().print(board(overview, every_silo=every_silo))


def _on_screen(looks: Looks, every_silo: bool) -> Iterator[admin_pb2.Overview]:
    last = None
    with Live(Text("asking the server"), refresh_per_second=4) as live:
        for found in looks:
            if found is None:
                shown = board(last, every_silo=every_silo) if last else Text()
                live.update(Group(shown, Text(AWAY, style="bold yellow")))
                continue
            last = found
            live.update(board(found, every_silo=every_silo))
            yield found


def _in_lines(looks: Looks, _every_silo: bool) -> Iterator[admin_pb2.Overview]:
    """A line for each version, each change of status, and each trouble that begins."""
    shown: dict[str, Any] = {}
    for found in _said_when_away(looks):
        for status in found.jobs:
            before, troubles = shown.get(status.job, (None, set())), alarms(status)
            if (status.status, status.head) != before[0]:
                print(line(status), flush=True)
            for trouble in sorted(troubles.keys() - before[1]):
                print(f"{status.job}: {troubles[trouble]}", flush=True)
            shown[status.job] = (status.status, status.head), troubles.keys()
        yield found


def _as_json(looks: Looks, _every_silo: bool) -> Iterator[admin_pb2.Overview]:
    for found in _said_when_away(looks):
        print(_dumped(found), flush=True)
        yield found


def _said_when_away(looks: Looks) -> Iterator[admin_pb2.Overview]:
    """What comes; that nothing comes is said once, on standard error."""
    away = False
    for found in looks:
        if found is None and not away:
            print(AWAY, file=sys.stderr, flush=True)
        away = found is None
        if found is not None:
            yield found


def _over(overview: admin_pb2.Overview) -> bool:
    return all(status.status in ENDED for status in overview.jobs)


def _dumped(overview: admin_pb2.Overview) -> str:
    return json.dumps(snapshot(overview), ensure_ascii=False)
