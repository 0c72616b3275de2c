"""Assigning log indices: the only place where the tree grows.

It runs inside the writer's transaction and keeps nothing in memory between transactions but what was committed, so a
rolled back batch leaves no trace and an index is never used twice for different committed entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, func, insert, select

from anabranch.tlog.checkpoint import Checkpoint, sign
from anabranch.tlog.entry import Actor, Target, encode_entry, new_entry, uuid7
from anabranch.tlog.merkle import Frontier, leaf_hash
from anabranch.tlog.note import NoteSigner
from anabranch.wire import canonical
from server.audit.log import Nodes
from server.state.tables import checkpoints, entries, nodes

_SIZE = select(func.max(entries.c.index))
_ADD_ENTRIES, _ADD_NODES, _ADD_CHECKPOINT = insert(entries), insert(nodes), insert(checkpoints)


class EntryWriter(Protocol):
    """Turns what a decision says into the bytes of an entry."""

    def __call__(
        self, type: str, now: float, /, *, actor: Actor, target: Target, detail: dict[str, Any], **more: Any
    ) -> bytes: ...


@dataclass
class Growth:
    """The tree inside one transaction."""

    connection: Connection
    nodes: Nodes  # what this transaction knows of the tree
    frontier: Frontier
    origin: str
    signer: NoteSigner

    @property
    def size(self) -> int:
        return self.frontier.size

    def append(self, fresh: Sequence[tuple[bytes, bytes | None]]) -> str:
        """Insert entries, with what was signed, at the next indices, and every tree node they complete.

        Returns the new signed checkpoint.
        """
        first = self.size
        grown = [node for entry, _ in fresh for node in self.frontier.append(leaf_hash(entry))]
        self.connection.execute(
            _ADD_ENTRIES,
            [
                {"index": index, "data": entry, "signed": payload}
                for index, (entry, payload) in enumerate(fresh, first)
            ],
        )
        self.nodes.keep(grown)
        self.connection.execute(_ADD_NODES, [{"level": lvl, "index": i, "hash": h} for lvl, i, h in grown])
        note = sign(Checkpoint(self.origin, self.size, self.frontier.root()), self.signer)
        self.connection.execute(_ADD_CHECKPOINT, {"size": self.size, "note": note})
        return note


@dataclass(frozen=True)
class Sequencer:
    origin: str
    federation: str
    observer: str  # SPIFFE URI of this server
    signer: NoteSigner
    entropy: Callable[[int], bytes]

    def begin(self, connection: Connection, known: Nodes) -> Growth:
        newest = connection.execute(_SIZE).scalar()
        size = 0 if newest is None else newest + 1
        frontier = Frontier.restore(size, known.reader(connection))
        return Growth(connection, known, frontier, self.origin, self.signer)

    def encode(
        self, type: str, now: float, /, *, actor: Actor, target: Target, detail: dict[str, Any], **more: Any
    ) -> bytes:
        """Canonical bytes of one entry. Raises Misuse when it breaks its type's closed schema."""
        entry = new_entry(
            type,
            id=uuid7(int(now * 1000), self.entropy(10)),
            time=canonical.utc(now),
            fed=self.federation,
            observer=self.observer,
            actor=actor,
            target=target,
            detail=detail,
            **more,
        )
        return encode_entry(entry)
