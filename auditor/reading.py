"""Steps 3 and 4 entry by entry: what it says, and the part of its signature that needs nothing but itself.

A long log is read by several processes: each parses some entries and checks their signatures; only bytes, numbers and
texts go between them. Whatever a worker cannot call good is judged again here, by the same functions, which then say
what is wrong. What depends on the order of entries (whose key it was, and whether it was revoked) is judged in
`signatures` and `lifecycle`, in order.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anabranch.errors import AnabranchError, Refused, Unavailable
from anabranch.tlog.details import SiloEnrolled
from anabranch.tlog.entry import Entry
from anabranch.wire import dsse, limits
from auditor.export import Export
from auditor.parsing import parse, revive
from auditor.plain import plain
from auditor.signatures import Doubt, Prepared, prepare
from auditor.tree import Tree, read_entries

ALONE = 20_000  # entries up to which starting other processes takes longer than it saves
CHUNK = 1024  # entries handed to a worker at a time
AHEAD = 3  # chunks in flight for each worker
MOST = 16  # workers
_SIGNED = b'"sigs":['
_ENROLLED = b'"type":"silo.enrolled"'

Keys = dict[str, bytes]  # keyid → public key: named by some entry so far, whether rightly or not
Good = tuple[
    list[int], dict[int, Prepared]
]  # positions that do not parse; what was signed, where that is good


@dataclass(slots=True)
class Read:
    index: int
    entry: Entry | None
    refusal: str = ""  # why there is no entry
    prepared: Prepared | None = None  # the signature, if a worker found it good


def read(export: Export, tree: Tree, processes: int | None) -> Iterator[Read]:
    """Every entry, in order. `processes`: how many workers; None: as many as there are cores, for a long log.

    Raises Refused if the files changed since the tree was hashed, Unavailable if a worker dies.
    """
    workers = processes if processes is not None else (min(_cores(), MOST) if tree.size > ALONE else 1)
    if workers < 2:
        for index, data in read_entries(export, tree):
            yield _here(index, data)
        return
    # not forked: the caller may have threads, such as the one that draws the progress
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from _there(export, tree, pool, workers)
        except BrokenProcessPool as error:
            raise Unavailable(
                "a process that helped to verify has died, perhaps for want of memory; free some and try again"
            ) from error


def _cores() -> int:
    """That this process may use; not every system can say."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _here(index: int, data: bytes) -> Read:
    try:
        return Read(index, parse(data))
    except Refused as refusal:
        return Read(index, None, str(refusal))


def _there(export: Export, tree: Tree, pool: ProcessPoolExecutor, workers: int) -> Iterator[Read]:
    entries = read_entries(export, tree)
    keys: Keys = {}
    flying: deque[tuple[list[tuple[int, bytes]], Future[Good]]] = deque()
    try:
        while True:
            while len(flying) < AHEAD * workers and (chunk := list(islice(entries, CHUNK))):
                for _, data in chunk:
                    if _ENROLLED in data:
                        keys = keys | _keys(data)
                leaves = [data for _, data in chunk]
                flying.append((chunk, pool.submit(work, export.root, leaves, keys)))
            if not flying:
                return
            chunk, future = flying.popleft()
            bad, good = future.result()
            doubtful = set(bad)
            for position, (index, data) in enumerate(chunk):
                if position in doubtful:
                    yield _here(index, data)
                else:
                    yield Read(index, revive(data), prepared=good.get(position))
    finally:
        for _, future in flying:
            future.cancel()


def work(root: Path, leaves: list[bytes], keys: Keys) -> Good:
    """In a worker."""
    export = Export(root)
    bad: list[int] = []
    good: dict[int, Prepared] = {}
    for position, data in enumerate(leaves):
        if _SIGNED not in data and plain(data):
            continue
        try:
            entry = parse(data)
        except Refused:
            bad.append(position)
            continue
        public = keys.get(entry.sigs[0].keyid) if entry.sigs and len(entry.sigs) == 1 else None
        if public is None or not entry.sigs:
            continue
        try:
            statement = prepare(
                entry, entry.sigs[0], public, lambda digest: export.object(digest, limits.ENVELOPE)
            )
        except (AnabranchError, Doubt):
            continue
        if statement is not None:
            good[position] = statement
    return bad, good


def _keys(data: bytes) -> Keys:
    try:
        detail = parse(data).detail
    except Refused:
        return {}
    found = [bytes.fromhex(key.public) for key in detail.keys] if isinstance(detail, SiloEnrolled) else []
    return {dsse.keyid(public): public for public in found}
