"""Aggregation of updates, and everything that must survive a crash while doing it."""

import os

# gRPC offers no setting for TLS 1.3 only. A TLS 1.2 suite that can never be agreed on here shuts 1.2 out and
# leaves the suites of 1.3 alone. It counts only if it is set before grpc is first imported, so it stands here;
# a starting server dials itself to be sure that it took effect.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-AES256-CBC-SHA"
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # refused handshakes are not news on stderr
