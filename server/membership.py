"""Membership: who belongs to the federation, and with which certificate.

    invite → begin → enrol → renew … → revoke

A token is redeemed by ONE conditional UPDATE, so of any number of racing requests exactly one wins. The request that
won may be repeated until the token expires, because its answer may have been lost; any other one is refused.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, func, insert, select, update

from anabranch.errors import Conflict, Reason, Refused
from anabranch.tlog.entry import Actor, Target
from anabranch.tlog.receipt import Receipt
from anabranch.wire import canonical, dsse
from anabranch.wire.bundle import FederationInfo, JoinBundle
from anabranch.wire.identity import enrolment_proof_message, new_tls_key, parse_identity, private_pem
from server import lifecycle
from server.allow_list import OVERLAP, AllowList
from server.ca.authority import Authority, Issued, read_request
from server.sessions import Presence, Revoked, Sessions
from server.state.database import Reader
from server.state.tables import certificates, keys, silos, tokens
from server.state.writer import Transaction, Writer
