"""What the transport serves: the rooms that decide. All of them are synchronous and are called in threads."""

from dataclasses import dataclass

from server.allow_list import AllowList
from server.audit.log import Log
from server.intake import Intake
from server.jobs import Jobs
from server.membership import Membership
from server.reviving import Reviving
from server.scheduling import Scheduling
from server.sessions import Sessions
from server.vitals import Vitals


@dataclass(frozen=True)
class Rooms:
    intake: Intake
    scheduling: Scheduling
    jobs: Jobs
    reviving: Reviving
    membership: Membership
    log: Log
    sessions: Sessions
    allow_list: AllowList
    vitals: Vitals
