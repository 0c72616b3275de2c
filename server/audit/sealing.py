"""Keeping what opens a sealed entry: values and salt, in the state store of this server only.

Deleting the row erases the fact; the entry and its commitment stay.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from anabranch.tlog.entry import Sealed, seal
from anabranch.wire import canonical
from server.state.tables import sealed


def keep_sealed(connection: Connection, silo: str, values: Mapping[str, Any], salt: bytes) -> Sealed:
    """The commitment for the entry; `values` (canonical JSON) and `salt` (32 bytes) stay in the same transaction."""
    commitment = seal(values, salt)
    opened = canonical.encode(dict(values)).decode()
    connection.execute(
        insert(sealed).values(commit=commitment.commit, silo=silo, salt=salt.hex(), fields=opened)
    )
    return commitment
