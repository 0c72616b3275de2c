import server  # noqa: F401 - before any test imports grpc: it switches TLS 1.2 off for this process
