"""Checking an export of the audit log offline: nothing here knows the server, the silo agent or a network.

`verify` asks whether the log is intact and its story consistent, `replay` recomputes every model version. Whoever
runs this trusts the log's pinned key for completeness, the silos' keys for what silos said, and nobody else.
"""
