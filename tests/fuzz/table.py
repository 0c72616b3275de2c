"""Every place where bytes of another party are parsed. A new parser is a new line in one of the eight."""

from itertools import chain

from tests.fuzz.documents import DOCUMENTS
from tests.fuzz.readers import READERS
from tests.fuzz.revival import REVIVAL
from tests.fuzz.server_own import OWN
from tests.fuzz.server_side import SERVER
from tests.fuzz.silo import SILO
from tests.fuzz.target import Target
from tests.fuzz.training import TRAINING
from tests.fuzz.wire import WIRE

_ALL = list(chain(WIRE, DOCUMENTS, SILO, TRAINING, SERVER, REVIVAL, OWN, READERS))
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
assert len(TARGETS) == len(_ALL), "two targets have one name"
