"""Reading the audit log: checkpoints, proofs, receipts."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, bindparam, select

from anabranch.errors import Corrupt, Reason, Refused
from anabranch.tlog import merkle
from anabranch.tlog.entry import Sig
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical
from anabranch.wire.dsse import Envelope
from server.audit.register import size_of
from server.state.database import Reader
from server.state.tables import checkpoints, entries, nodes

KEPT_NODES = 1 << 14  # about 3 MB

_NODE = select(nodes.c.hash).where(nodes.c.level == bindparam("level"), nodes.c.index == bindparam("index"))
_NEWEST = select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)
_ENTRY = select(entries.c.data).where(entries.c.index == bindparam("index"))


def entry_signature(envelope: Envelope) -> Sig:
    """How an entry carries a silo's signature: detached, its payload named by digest."""
    signature = envelope.signatures[0]
    return Sig(
        keyid=signature.keyid,
        payloadType=envelope.payload_type,
        sig=base64.b64encode(signature.sig).decode(),
        payload_sha256=canonical.sha256(envelope.payload),
    )


def node_reader(connection: Connection) -> merkle.Node:
    """Complete tree nodes from the store, for proofs."""

    def node(level: int, index: int) -> bytes:
        found = connection.execute(_NODE, {"level": level, "index": index}).scalar()
        if found is None:
            raise Corrupt(
                f"tree node {level}/{index} is missing from the state store; restore it from a backup"
            )
        return bytes(found)

    return node


class Nodes:
    """Complete nodes seen before: once committed they never change, and the proofs of a log share most of them.

    A transaction that is rolled back leaves nodes that never came to be, all of them behind the end of the log. Nobody
    asks for those, and whoever makes the log longer keeps its own in their place.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], bytes] = {}

    def keep(self, completed: Iterable[tuple[int, int, bytes]]) -> None:
        if len(self._kept) > KEPT_NODES:
            self._kept.clear()
        self._kept.update({(level, index): value for level, index, value in completed})

    def reader(self, connection: Connection) -> merkle.Node:
        stored = node_reader(connection)

        def node(level: int, index: int) -> bytes:
            found = self._kept.get((level, index))
            if found is None:
                found = stored(level, index)
                self.keep([(level, index, found)])
            return found

        return node


def newest_checkpoint(connection: Connection) -> tuple[int, str]:
    """Size and signed note of the newest stored checkpoint; (0, "") before the first."""
    row = connection.execute(_NEWEST).first()
    return (row.size, row.note) if row else (0, "")


def receipt_for(connection: Connection, index: int, note: str, size: int, node: merkle.Node) -> Receipt:
    """Proof that entry `index` is in the tree of `size` entries that `note` signs."""
    data = connection.execute(_ENTRY, {"index": index}).scalar_one()
    proof = merkle.inclusion_proof(index, size, node)
    return Receipt(bytes(data), index, tuple(proof), note)


@dataclass(frozen=True)
class Log:
    """The log as the outside may ask for it. Only committed, signed state is visible."""

    reader: Reader
    _nodes: Nodes = field(default_factory=Nodes)

    def checkpoint(self) -> str:
        with self.reader.connect() as connection:
            return newest_checkpoint(connection)[1]

    def receipt(self, index: int) -> Receipt:
        """The receipt of a committed entry under the newest checkpoint."""
        with self.reader.connect() as connection:
            size, note = newest_checkpoint(connection)
            return receipt_for(connection, index, note, size, self._nodes.reader(connection))

    def continuing(self, receipt: Receipt, seen: int) -> Receipt:
        """`receipt` for a silo that says it knows the first `seen` entries, with the proof that it continues them.

        A silo that knows nothing, or says it knows more than the receipt's tree has, gets the receipt as it is.
        """
        size = size_of(receipt.checkpoint)
        if not 0 < seen < size:
            return receipt
        with self.reader.connect() as connection:
            proof = merkle.consistency_proof(seen, size, self._nodes.reader(connection))
        return replace(receipt, seen=seen, consistency=tuple(proof))

    def consistency(self, old: int, new: int) -> list[bytes]:
        """RFC 9162 §2.1.4 proof between two sizes. Raises Refused(NOT_FOUND) beyond the newest checkpoint."""
        with self.reader.connect() as connection:
            size, _ = newest_checkpoint(connection)
            if not 0 < old <= new <= size:
                raise Refused(Reason.NOT_FOUND, f"no proof from {old} to {new}: the log has {size} entries")
            return merkle.consistency_proof(old, new, self._nodes.reader(connection))
