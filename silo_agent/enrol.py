"""Enrolment: from a join bundle to a silo with its own keys and certificate.

The keys are born in the silo's directory and stay there. The bundle's pins are checked before anything is dialled and
the server's certificate before the token is sent. The certificate file is written last: as long as it is missing the
silo is not enrolled, and the same command continues with the same keys and the same request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from anabranch import durable
from anabranch.errors import Reason, Refused, Unavailable
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
    before = None if again else _enrolled(home, joining, now)
    if before is not None:
        return before
    if now > canonical.from_utc(joining.expires):
        raise Refused(
            Reason.BAD_TOKEN,
            f"the bundle expired at {joining.expires}; by this machine's clock it is {canonical.utc(now)}. "
            f"Correct the clock if that is wrong, otherwise ask for a new one: anabranch silo invite {joining.silo}",
        )
    if again:
        _forget(home)
    _prepare(home, proxy)
    chain, proofs = _ask(home, joining)
    return _finish(home, joining, chain, proofs, now)


def _enrolled(home: Home, joining: JoinBundle, now: float) -> Enrolled | None:
    """The identity this home already has, if it is still good for anything."""
    if not (home.identity / identity.TLS_CHAIN).exists():
        return None
    known = identity.load(home.identity)
    if (known.federation.federation, known.silo) != (joining.federation, joining.silo):
        raise Refused(
            Reason.BAD_TOKEN,
            f"{home.path} belongs to {known.uri}; use another directory for silo {joining.silo}",
        )
    not_after = known.leaf.not_valid_after_utc.timestamp()
    if now > not_after:
        (home.identity / identity.TLS_CHAIN).unlink()
        return None
    return Enrolled(known.uri, not_after, already=True)


def _forget(home: Home) -> None:
    """For a silo that was revoked and invited again: new keys, and the old certificate gone first."""
    durable.make_dir(home.identity, 0o700)
    keys = (
        identity.UPDATE_KEY,
        identity.APPROVER_KEY,
        identity.TLS_KEY,
        identity.NEXT_KEY,
        identity.NEXT_CHAIN,
    )
    for name in (identity.TLS_CHAIN, REQUEST, *keys):
        durable.remove(home.identity / name)


def _prepare(home: Home, proxy: str | None) -> None:
    """Directories, settings, a policy that denies, and the keys. Killed inside: what exists is kept and used."""
    durable.make_dir(home.path, 0o755)
    durable.make_dir(home.identity, 0o700)
    if not home.settings.exists():
        durable.write(home.settings, settings_template(proxy).encode())
    if not home.policy.exists():
        durable.write(home.policy, policy.TEMPLATE.encode())
    for name in (identity.UPDATE_KEY, identity.APPROVER_KEY):
        if not (home.identity / name).exists():
            identity.born(home.identity / name, wire.private_pem(wire.new_signing_key()))
    if not (home.identity / identity.TLS_KEY).exists():
        identity.born(home.identity / identity.TLS_KEY, wire.private_pem(wire.new_tls_key()))
    if not (home.identity / REQUEST).exists():
        request = wire.csr(identity.tls_key(home.identity / identity.TLS_KEY))
        durable.write(home.identity / REQUEST, request, 0o600)


def _ask(home: Home, joining: JoinBundle) -> tuple[bytes, Sequence[Receipt]]:
    """Spend the token. Killed after the server has spent it: the same request asks for the same certificate again."""
    request = (home.identity / REQUEST).read_bytes()
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
            key = identity.signing_key(home.identity / name)
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


def _finish(home: Home, joining: JoinBundle, chain: bytes, proofs: Sequence[Receipt], now: float) -> Enrolled:
    """Believe the reply only as far as CA and log prove it, then keep it; the certificate file comes last."""
    leaf, *intermediates = wire.parse_chain(chain)
    _check_leaf(home, joining, leaf, intermediates, now)
    _check_log(home, joining, leaf, proofs)
    info = joining.federation_info()
    durable.write(home.identity / identity.CA, info.ca_pem.encode())
    durable.write(home.identity / identity.FEDERATION, info.encode())
    # Killed before this write: not enrolled; the command is repeated with the same keys and request.
    durable.write(home.identity / identity.TLS_CHAIN, chain)
    durable.remove(home.identity / REQUEST)
    uri = wire.Identity(joining.federation, "silo", joining.silo, _agent(leaf)).uri
    return Enrolled(uri, leaf.not_valid_after_utc.timestamp(), already=False)


def _agent(leaf: x509.Certificate) -> int:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return wire.parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier)[0]).agent or 0


def _check_leaf(
    home: Home,
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
    key = identity.tls_key(home.identity / identity.TLS_KEY)
    if (who.federation, who.name) != (
        joining.federation,
        joining.silo,
    ) or leaf.public_key() != key.public_key():
        raise Refused(
            Reason.BAD_CERTIFICATE,
            f"the server certified {who.uri} instead of silo {joining.silo} with the key made here",
        )


def _check_log(home: Home, joining: JoinBundle, leaf: x509.Certificate, proofs: Sequence[Receipt]) -> None:
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
    request = canonical.sha256((home.identity / REQUEST).read_bytes())
    receipts.require(entries["silo.enrolled"], "silo.enrolled", silo=joining.silo, csr_sha256=request)
    fingerprint = canonical.sha256(leaf.public_bytes(Encoding.DER))
    receipts.require(entries["cert.issued"], "cert.issued", cert_sha256=fingerprint)
