"""Channels to the server, and the options both ends must agree on.

TLS 1.3 and the client's certificate are enforced by the server; gRPC offers a client no say in the version.
All numbers are milliseconds unless named otherwise.
"""

from typing import Final

import grpc

from anabranch.errors import Misuse
from anabranch.wire import limits

Option = tuple[str, int | str]

KEEPALIVE: Final = 10_000  # a dead path is noticed within KEEPALIVE + KEEPALIVE_TIMEOUT
KEEPALIVE_TIMEOUT: Final = 5_000
FIRST_BACKOFF: Final = 200
LONGEST_BACKOFF: Final = 2_000
CONNECT_TIMEOUT: Final = 5_000  # of one attempt: gRPC's own 20 s would outlast many outages

_NO_COMPRESSION: Option = (
    "grpc.compression_enabled_algorithms_bitset",
    1,
)  # identity only: no decompression bombs

# What one stream may have under way, unread, in either direction. gRPC would let it grow with the link, and a server holds
# one for each silo that uploads; 4 MiB fill a link of 40 MB/s at a round trip of 100 ms.
WINDOW: Final[tuple[Option, ...]] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * limits.MIB),
)

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    ("grpc.max_send_message_length", limits.REQUEST_MESSAGE),
    ("grpc.max_receive_message_length", limits.REPLY_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT),
    ("grpc.http2.max_pings_without_data", 0),  # an idle session keeps pinging
    ("grpc.initial_reconnect_backoff_ms", FIRST_BACKOFF),
    ("grpc.max_reconnect_backoff_ms", LONGEST_BACKOFF),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT),  # despite its name: the deadline of one attempt
    _NO_COMPRESSION,
    *WINDOW,
)
SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    ("grpc.max_send_message_length", limits.REPLY_MESSAGE),
    ("grpc.max_receive_message_length", limits.REQUEST_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT),
    (
        "grpc.http2.min_recv_ping_interval_without_data_ms",
        KEEPALIVE // 2,
    ),  # else clients' pings get them hung up on
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a share of the traffic
    _NO_COMPRESSION,
    *WINDOW,
)


def channel(
    address: str, ca_pem: bytes, key_pem: bytes | None, cert_pem: bytes | None, proxy: str | None = None
) -> grpc.Channel:
    """A lazily connecting channel to `address` ("host:port") that trusts `ca_pem` only.

    With `key_pem` and `cert_pem` (leaf first, then issuing CA) the client authenticates itself too; without
    both it does not (enrolment). `proxy` is "http://[user:password@]host:port" of an HTTP CONNECT proxy,
    which also resolves the name; without it the environment decides (grpc_proxy, https_proxy, http_proxy),
    and no_proxy rules in either case. Credentials are fixed for the life of a channel: after a renewal open a
    new one and close this one. Raises Misuse when only one of key and certificate is given.
    """
    if (key_pem is None) != (cert_pem is None):
        raise Misuse("a client certificate needs its key, and a key its certificate")
    credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, cert_pem)
    options = CHANNEL_OPTIONS if proxy is None else (*CHANNEL_OPTIONS, ("grpc.http_proxy", proxy))
    return grpc.secure_channel(address, credentials, options=options)
