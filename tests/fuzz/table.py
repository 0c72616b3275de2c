"""Every place where bytes of another party are parsed. A new parser is a new line in one of the four."""

from tests.fuzz.readers import READERS
from tests.fuzz.server_side import SERVER
from tests.fuzz.silo import SILO
from tests.fuzz.target import Target
from tests.fuzz.wire import WIRE

TARGETS: dict[str, Target] = {target.name: target for target in (*WIRE, *SILO, *SERVER, *READERS)}
assert len(TARGETS) == len(WIRE) + len(SILO) + len(SERVER) + len(READERS), "two targets have one name"
