"""Enrolment: from a join bundle to a silo with its own keys and certificate.

The keys are born in the silo's directory and stay there. The bundle's pins are checked before anything is dialled and
the server's certificate before the token is sent. The certificate file is written last: as long as it is missing the
silo is not enrolled, and the same command continues with the same keys and the same request.

`again` makes the new identity beside the old one, which is given up only for a complete one.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch import durable
from anabranch.errors import Corrupt, Reason, Refused, Unavailable
from anabranch.tlog.note import NoteVerifier
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical
from anabranch.wire import identity as wire
from anabranch.wire.bundle import JoinBundle, parse_bundle
from silo_agent import identity, policy, probe, receipts
from silo_agent.client import Enroller
from silo_agent.config import Home, load_settings, settings_template
from silo_agent.receipts import LogView

REQUEST = "tls.csr"  # kept until enrolled: a repeated attempt sends the same bytes
NEW, OLD = "identity.new", "identity.old"  # beside `identity`, while it is replaced


@dataclass(frozen=True)
class Enrolled:
    uri: str
    not_after: float  # unix seconds
    already: bool  # nothing was done


def enrol(home: Home, bundle: bytes, now: float, proxy: str | None = None, again: bool = False) -> Enrolled:
    """Enrol `home` with a join bundle, once. `proxy` goes into a fresh agent.toml.

    Raises Refused (MALFORMED bundle; BAD_CERTIFICATE for a wrong pin, an intercepted connection or a clock that is off;
    BAD_TOKEN) and Unavailable naming the hop that fails.
    """
    joining = parse_bundle(bundle)
    new = home.path / NEW
    if (new / identity.TLS_CHAIN).exists():
        # An enrolment `again` was killed when all was done but the exchange.
        _exchange(home)
        again = False
    if again:
        _same_silo(home, joining)
    before = None if again else _enrolled(home, joining, now)
    if before is not None:
        return before
    if now > canonical.from_utc(joining.expires):
        raise Refused(
            Reason.BAD_TOKEN,
            f"the bundle expired at {joining.expires}; by this machine's clock it is {canonical.utc(now)}. "
            f"Correct the clock if that is wrong, otherwise ask for a new one: anabranch silo invite {joining.silo}",
        )
    folder = new if again else home.identity
    _prepare(home, folder, proxy)
    chain, proofs = _ask(home, folder, joining)
    done = _finish(home, folder, joining, chain, proofs, now)
    if again:
        _exchange(home)
    return done


def _enrolled(home: Home, joining: JoinBundle, now: float) -> Enrolled | None:
    """The identity this home already has, if it is still good for anything."""
    if not (home.identity / identity.TLS_CHAIN).exists():
        return None
    known = identity.load(home.identity)
    _require_same(home, known, joining)
    not_after = known.leaf.not_valid_after_utc.timestamp()
    if now > not_after:
        (home.identity / identity.TLS_CHAIN).unlink()
        return None
    return Enrolled(known.uri, not_after, already=True)


def _require_same(home: Home, known: identity.SiloIdentity, joining: JoinBundle) -> None:
    if (known.federation.federation, known.silo) != (joining.federation, joining.silo):
        raise Refused(
            Reason.BAD_TOKEN,
            f"{home.path} belongs to {known.uri}; use another directory for silo {joining.silo}",
        )


def _same_silo(home: Home, joining: JoinBundle) -> None:
    """Raises Refused when this home is another silo's. One that cannot be read is nobody's."""
    if not (home.identity / identity.TLS_CHAIN).exists():
        return
    try:
        known = identity.load(home.identity)
    except Corrupt:
        return
    _require_same(home, known, joining)


def _exchange(home: Home) -> None:
    """The new identity takes the place of the old one. Killed anywhere: the same command does the rest."""
    new, old = home.path / NEW, home.path / OLD
    shutil.rmtree(old, ignore_errors=True)
    if home.identity.exists():
        durable.rename(home.identity, old)
    # Killed here: there is no identity, and a complete one beside its place.
    durable.rename(new, home.identity)
    shutil.rmtree(old, ignore_errors=True)


def _prepare(home: Home, folder: Path, proxy: str | None) -> None:
    """Directories, settings, a policy that denies, and the keys. Killed inside: what exists is kept and used."""
    durable.make_dir(home.path, 0o755)
    durable.make_dir(folder, 0o700)
    if not home.settings.exists():
        durable.write(home.settings, settings_template(proxy).encode())
    if not home.policy.exists():
        durable.write(home.policy, policy.TEMPLATE.encode())
    for name in (identity.UPDATE_KEY, identity.APPROVER_KEY):
        if not (folder / name).exists():
            identity.born(folder / name, wire.private_pem(wire.new_signing_key()))
    if not (folder / identity.TLS_KEY).exists():
        identity.born(folder / identity.TLS_KEY, wire.private_pem(wire.new_tls_key()))
    if not (folder / REQUEST).exists():
        request = wire.csr(identity.tls_key(folder / identity.TLS_KEY))
        durable.write(folder / REQUEST, request, 0o600)


def _ask(home: Home, folder: Path, joining: JoinBundle) -> tuple[bytes, Sequence[Receipt]]:
    """Spend the token. Killed after the server has spent it: the same request asks for the same certificate again."""
    request = (folder / REQUEST).read_bytes()
    proxy, ca = load_settings(home).proxy, joining.ca_pem.encode()
    # Before the token is sent, the server has proven to be this federation's; a failing hop is named, not guessed.
    try:
        probe.walk(joining.enrolment, proxy, ca, joining.federation)
    except probe.HopFailed as fault:
        raise probe.as_refusal(fault) from fault
    enroller = Enroller(joining.enrolment, ca, proxy)
    try:
        nonce = enroller.begin(joining.token_id)
        message = wire.enrolment_proof_message(joining.token_id, nonce, request)
        keys = []
        for purpose, name in (("update", identity.UPDATE_KEY), ("approver", identity.APPROVER_KEY)):
            key = identity.signing_key(folder / name)
            keys.append((purpose, key.public_key().public_bytes_raw(), key.sign(message)))
        return enroller.enrol(joining.token_id, bytes.fromhex(joining.token), request, keys)
    except Refused as error:
        if error.code is not Reason.BAD_TOKEN:
            raise
        raise Refused(
            Reason.BAD_TOKEN,
            f"the server did not accept the token of this bundle: {error}. A token is good once and only for a short "
            f"time; ask for a new bundle: anabranch silo invite {joining.silo}",
        ) from error
    finally:
        enroller.close()


def _finish(
    home: Home, folder: Path, joining: JoinBundle, chain: bytes, proofs: Sequence[Receipt], now: float
) -> Enrolled:
    """Believe the reply only as far as CA and log prove it, then keep it; the certificate file comes last."""
    leaf, *intermediates = wire.parse_chain(chain)
    _check_leaf(folder, joining, leaf, intermediates, now)
    _check_log(home, folder, joining, leaf, proofs)
    info = joining.federation_info()
    durable.write(folder / identity.CA, info.ca_pem.encode())
    durable.write(folder / identity.FEDERATION, info.encode())
    # Killed before this write: not enrolled; the command is repeated with the same keys and request.
    durable.write(folder / identity.TLS_CHAIN, chain)
    durable.remove(folder / REQUEST)
    uri = wire.Identity(joining.federation, "silo", joining.silo, _agent(leaf)).uri
    return Enrolled(uri, leaf.not_valid_after_utc.timestamp(), already=False)


def _agent(leaf: x509.Certificate) -> int:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return wire.parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier)[0]).agent or 0


def _check_leaf(
    folder: Path,
    joining: JoinBundle,
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    now: float,
) -> None:
    if now < leaf.not_valid_before_utc.timestamp():
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the certificate just issued becomes valid at {leaf.not_valid_before_utc:%F %T} UTC and this machine's "
            f"clock says {canonical.utc(now)}: the clock is behind; set it and repeat the command",
        )
    roots = wire.parse_chain(joining.ca_pem.encode())
    who = wire.verify_leaf(leaf, roots, intermediates, now, "silo")
    key = identity.tls_key(folder / identity.TLS_KEY)
    if (who.federation, who.name) != (
        joining.federation,
        joining.silo,
    ) or leaf.public_key() != key.public_key():
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the server certified {who.uri} instead of silo {joining.silo} with the key made here",
        )


def _check_log(
    home: Home, folder: Path, joining: JoinBundle, leaf: x509.Certificate, proofs: Sequence[Receipt]
) -> None:
    """Enrolment and certificate stand in the pinned log; its checkpoint becomes this silo's first view."""

    def no_older_view(old: int, new: int) -> Sequence[bytes]:
        raise Unavailable(f"the log grew from {old} to {new} during enrolment; repeat the command")

    view = home.log_view
    durable.remove(view)
    log = LogView(
        view, home.evidence, joining.log_origin, NoteVerifier.from_vkey(joining.log_vkey), no_older_view
    )
    entries = {entry.type: entry for entry in map(log.accept, proofs)}
    if entries.keys() < {"silo.enrolled", "cert.issued"}:
        raise Refused(
            Reason.DIGEST_MISMATCH,
            f"the server proved {sorted(entries)} of silo.enrolled and cert.issued only",
        )
    request = canonical.sha256((folder / REQUEST).read_bytes())
    receipts.require(entries["silo.enrolled"], "silo.enrolled", silo=joining.silo, csr_sha256=request)
    fingerprint = canonical.sha256(leaf.public_bytes(Encoding.DER))
    receipts.require(entries["cert.issued"], "cert.issued", cert_sha256=fingerprint)
