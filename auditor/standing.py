"""Who belongs to the federation: silos, their certificates, whether they are here, and the starts of the server.

silo         invited → enrolled → revoked (→ invited …)
certificate  issued to an enrolled silo → renewed by its holder
presence     lost → returned, within one run of the server
server       every start has a higher epoch than the one before: no two servers ever write one log
"""

from anabranch.tlog.details import (
    CertIssued,
    CertRenewed,
    ServerStarted,
    SiloEnrolled,
    SiloInvited,
    SiloPresence,
    SiloRevoked,
)
from anabranch.tlog.entry import Entry
from anabranch.wire.identity import parse_identity
from auditor.broken import Broken, require
from auditor.history import History, Invitation, Silo, Start


class Standing:
    """The rules about identities; the methods raise Broken. `index` is that of the entry."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lost: set[str] = set()  # silos lost in this run of the server

    def invited(self, index: int, _: Entry, detail: SiloInvited) -> None:
        invitations = self._history.silos.setdefault(detail.silo, Silo()).invitations
        require(detail.token_id not in invitations, f"token {detail.token_id} was issued before")
        invitations[detail.token_id] = Invitation(index, detail.expires)

    def enrolled(self, index: int, _: Entry, detail: SiloEnrolled) -> None:
        """One request redeems a token. The same request again is the same enrolment: its answer was lost."""
        silo = self._history.silos.setdefault(detail.silo, Silo())
        invitation = silo.invitations.get(detail.token_id)
        if invitation is None:
            raise Broken(f"silo {detail.silo} was not invited with token {detail.token_id}")
        require(
            invitation.request in ("", detail.csr_sha256),
            f"token {detail.token_id} was used before, by another",
        )
        invitation.request = detail.csr_sha256
        silo.active, silo.enrolled = True, index

    def revoked(self, index: int, _: Entry, detail: SiloRevoked) -> None:
        silo = self.silo(detail.silo)
        silo.active, silo.revoked = False, index
        self._history.end_all(detail.silo, None, "ended with its silo's revocation")
        for job in self._history.jobs.values():  # its approvals were signed with keys that are dead now
            if job.decisions.get(detail.silo) == "approved":
                job.decisions[detail.silo] = "withdrawn"
                job.teaching.discard(detail.silo)
        for update in detail.updates:
            require(update in self._history.updates, f"retires update {update}, which was never received")

    def issued(self, index: int, _: Entry, detail: CertIssued) -> None:
        self._certificate(index, detail.identity, detail.cert_sha256)

    def renewed(self, index: int, _: Entry, detail: CertRenewed) -> None:
        identity, since = self._history.certificates.get(detail.previous_cert_sha256, ("", -1))
        previous = f"{detail.previous_cert_sha256[:16]}…"
        self._certificate(index, detail.identity, detail.cert_sha256)
        require(
            identity == detail.identity, f"renews certificate {previous}, never issued to {detail.identity}"
        )
        name = parse_identity(identity).name
        silo = self._history.silos.get(name)
        require(
            silo is None or silo.revoked < since,
            f"renews certificate {previous} of {name}, which was revoked",
        )

    def _certificate(self, index: int, identity: str, digest: str) -> None:
        known = self._history.certificates.setdefault(digest, (identity, index))
        require(known[0] == identity, f"certificate {digest[:16]}… was issued to {known[0]} before")
        who = parse_identity(identity)
        if who.role == "silo":
            self.active(who.name)

    def presence(self, index: int, entry: Entry, detail: SiloPresence) -> None:
        silo = self.silo(detail.silo)
        if entry.type == "silo.lost":
            self._lost.add(detail.silo)
            silo.lost = index
            return
        silo.lost = -1
        require(detail.silo in self._lost, f"silo {detail.silo} was not lost since the server's last start")
        self._lost.discard(detail.silo)

    def server_started(self, index: int, entry: Entry, detail: ServerStarted) -> None:
        """What an earlier run knew to be lost was in its memory: the new one notices afresh."""
        before = self._history.starts[-1].detail.epoch if self._history.starts else -1
        self._history.starts.append(Start(index, entry.time, detail))
        self._lost.clear()
        require(
            detail.epoch > before,
            f"starts in epoch {detail.epoch}, but the start before was in epoch {before}",
        )

    # what must be there already

    def silo(self, name: str) -> Silo:
        silo = self._history.silos.get(name)
        if silo is None:
            raise Broken(f"silo {name} was never invited")
        return silo

    def active(self, name: str) -> None:
        if not self.silo(name).active:
            raise Broken(f"silo {name} is not enrolled, or was revoked before")

    def heard(self, index: int, identity: str) -> None:
        """An entry says that `identity` did something: if it is a silo, it is here."""
        before, _, rest = identity.partition("/silo/")
        if before and rest:
            silo = self._history.silos.get(rest.partition("/")[0])
            if silo is not None:
                silo.heard = index
