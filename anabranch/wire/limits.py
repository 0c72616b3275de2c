"""Bounds on everything that arrives from outside, each checked before memory is taken for what it bounds.

All are in bytes unless the comment says otherwise. They are part of the contract: raising one is compatible,
lowering one is not.
"""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Messages. gRPC knows one bound per direction, so the largest message of each decides it.
CHUNK: Final = MIB  # of bulk data in one streamed message
CONTROL_MESSAGE: Final = MIB  # any message that is not a chunk
REQUEST_MESSAGE: Final = MIB + 64 * KIB  # what a server takes: either of these, with its framing
REPLY_MESSAGE: Final = 4 * MIB  # what a client takes: lists of jobs with their terms

# Tensor files.
HEADER: Final = MIB  # safetensors JSON, without its 8-byte length
TENSORS: Final = 20_000  # per file (count)
TENSOR_NAME: Final = 512  # UTF-8
DIMENSIONS: Final = 16  # per shape (count)
TENSOR_FILE: Final = 1024 * GIB  # far above any model of today, far below where 64-bit sums could wrap

# Documents.
ENVELOPE: Final = 64 * KIB  # DSSE, JSON
SIGNATURES: Final = 8  # per envelope (count)
TERMS: Final = 256 * KIB
MANIFEST: Final = 768 * KIB  # terms and manifest share the one header message of a submission
ARCHIVE: Final = 16 * MIB  # a job's code, packed
BUNDLE: Final = 64 * KIB  # join bundle, federation file
CSR: Final = 4 * KIB  # DER
CERTIFICATE_CHAIN: Final = 32 * KIB  # PEM: leaf, then issuing CA
REPORT: Final = 4 * KIB  # of a reviver, JSON
METRICS: Final = 64  # names in one evaluation (count)

# Receipts; an entry and a checkpoint are bounded by tlog.entry and tlog.note.
PROOF: Final = 64  # hashes of 32 bytes on a path (count): a tree of 2^64 entries

# Repeated fields: counted before an element is touched, since touching one is what takes the memory.
PROGRESS: Final = 1024  # leases in one heartbeat (count)
PER_SECOND: Final = 1e12  # samples or tokens that a lease is said to train on, per second
JOBS: Final = 1024  # in one request or reply (count)
KEYS: Final = 8  # of one silo at enrolment (count)
SILOS: Final = 4096  # one reviver hears of at once (count)
RECEIPTS: Final = 16  # in one reply (count)

STATUS_MESSAGE: Final = 1024  # characters; travels in an HTTP/2 header, whose block is limited
