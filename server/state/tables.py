"""The tables of the state store, SQLAlchemy Core. One set for every database; migrations start from here.

Digests are lowercase hex SHA-256, times are unix seconds (UTC), blobs are named by digest and live in the blob store.
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()

# Fencing: whoever serves has raised the epoch; a transaction under an older one writes nothing.
epoch = Table(
    "epoch",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("epoch", Integer, nullable=False),
)

# --- the audit log -----------------------------------------------------------------------------------------------

entries = Table(
    "entries",
    metadata,
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Column("signed", LargeBinary),  # the payload its signature covers; the entry has the digest
)
nodes = Table(  # complete nodes of the RFC 6962 tree; level 0 holds the leaf hashes
    "nodes",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", Integer, primary_key=True, autoincrement=False),
    Column("note", String, nullable=False),
)
named = Table(  # content an entry names by digest; it is kept while one naming is not pruned
    "named",
    metadata,
    Column("digest", String, primary_key=True),
    Column("entry", Integer, primary_key=True, autoincrement=False),
    Column("pruned", Integer),  # the entry that says so
    Index("named_entry", "entry"),
    Index("named_pruned", "pruned"),
)
sealed = Table(  # what an entry's commitment opens to; deleted on request, the entry stays
    "sealed",
    metadata,
    Column("commit", String, primary_key=True),
    Column("silo", String),
    Column("salt", String),
    Column("fields", String),
)

# --- identity ----------------------------------------------------------------------------------------------------

silos = Table(
    "silos",
    metadata,
    Column("name", String, primary_key=True),
    Column("status", String, nullable=False),  # invited | active | revoked
    Column("agents", Integer, nullable=False, default=0),  # how many agent numbers were given out
    Column("invited_at", Float, nullable=False),
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column(
        "hash", String, nullable=False
    ),  # SHA-256 of the token; the token itself is shown once and never stored
    Column("silo", String, ForeignKey("silos.name"), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column(
        "request", String
    ),  # digest of the certificate request that redeemed it: the same one may be repeated
    Column("agent", Integer),  # the number it was given
    Column("failures", Integer, nullable=False, default=0),
)
certificates = Table(  # the allow-list: a certificate that is not here and active opens nothing
    "certificates",
    metadata,
    Column("fingerprint", String, primary_key=True),
    Column("identity", String, nullable=False),  # SPIFFE URI
    Column("silo", String),  # null for administrators and the server
    Column("serial", String, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("status", String, nullable=False),  # active | replaced | revoked
    Column("replaced_at", Float),  # set at renewal: valid for ten more minutes or until the new one is used
)
keys = Table(
    "keys",
    metadata,
    Column("keyid", String, primary_key=True),  # SHA-256 of the raw public key
    Column("silo", String, ForeignKey("silos.name"), nullable=False),
    Column("purpose", String, nullable=False),  # update | approver
    Column("public", LargeBinary, nullable=False),
    Column("retired_at", Float),
)

# --- jobs and model versions -------------------------------------------------------------------------------------

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("status", String, nullable=False),  # waiting | running | paused | completed | aborted
    Column("reason", String, nullable=False, default=""),
    Column("terms", LargeBinary, nullable=False),
    Column("terms_digest", String, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("submitted_index", Integer, nullable=False),  # of the log entry
    Column("resumed_at", Float),  # newest start or resume: a round does not run out while nobody works
    Column("ended_at", Float),
    Column("pruned_at", Float),  # retention has nothing left to do
    Column("head", Integer, nullable=False, default=0),
    Column("best", Integer),
    Column("best_value", Float),
    Column("judged", Integer),  # newest version compared with the best
    Column("unimproved", Integer, nullable=False, default=0),  # evaluated versions since the best
    Column("score", Float),  # what its share of the silos follows from; null: not known yet
)
sketches = Table(  # of the newest merged updates, one after the other (`server.core.sketch`)
    "sketches",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("newest", LargeBinary, nullable=False),
)
decisions = Table(
    "decisions",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("silo", String, ForeignKey("silos.name"), primary_key=True),
    Column("decision", String, nullable=False),  # approved | denied | withdrawn
    Column("revival", Boolean, nullable=False, default=False),  # whether its models may teach
    Column("entry", Integer, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parameters", String, nullable=False),  # digest
    Column("optimizer", String),
    Column("ema", String),
    Column("scalars", String, nullable=False, default="{}"),  # of the server optimizer, JSON of hex floats
    Column("published_at", Float, nullable=False),
    Column("handed_out_at", Float),  # newest model.exported
    Column("entry", Integer, nullable=False),  # model.published
)
views = Table(  # what travels of a version to the silos of a tier that does not get the parameters themselves
    "views",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("tier", String, primary_key=True),  # "": silos that are in none
    Column("digest", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("entry", Integer, nullable=False),  # model.encoded
)
leases = Table(
    "leases",
    metadata,
    Column("id", String, primary_key=True),
    Column("job", String, ForeignKey("jobs.id"), nullable=False),
    Column("silo", String, ForeignKey("silos.name"), nullable=False),
    Column("kind", String, nullable=False),  # train | evaluate
    Column("version", Integer, nullable=False),
    Column("nonce", String, nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("split", String, nullable=False, default=""),
    Column("local_steps", Integer, nullable=False, default=0),
    Column("status", String, nullable=False),  # open | fulfilled | released
    Column("reason", String, nullable=False, default=""),  # why it was released
    Column("fault", String, nullable=False, default=""),  # of the job's code: exception and line
    Column("released_at", Float),
    Column(
        "arrival_group", String
    ),  # fedcompass: the lease that founded it; its deadline is the latest arrival
    Column("expected", Float),  # when the group is to arrive
    Column("step_seconds", Float),  # what the silo was taken to need for a step
    Column("entry", Integer, nullable=False),
    Index("leases_open", "silo", "job", "status"),
    Index("leases_status", "status", "silo"),
    Index("leases_issued", "silo", "job", "issued_at"),
    Index("leases_tried", "job", "kind", "version"),
    Index("leases_newest", "silo", "job", "entry"),
)
updates = Table(
    "updates",
    metadata,
    Column("id", String, primary_key=True),
    Column("job", String, ForeignKey("jobs.id"), nullable=False),
    Column("silo", String, ForeignKey("silos.name"), nullable=False),
    Column("lease", String, nullable=False),
    Column("base", Integer, nullable=False),
    Column("delta", String, nullable=False),  # digest; of a refused update only what it claimed
    Column("bytes", Integer, nullable=False),
    Column("examples", Integer),
    Column("received_at", Float, nullable=False),
    Column("status", String, nullable=False),  # received | frozen | merged | refused | retired
    Column("version", Integer),  # it was merged into
    Column("staleness", Integer),
    Column("reason", String, nullable=False, default=""),
    Column("entry", Integer, nullable=False),  # update.received or update.refused: the receipt
    Index("updates_job_status", "job", "status", "entry"),
    Index("updates_base", "job", "silo", "base"),
    Index("updates_newest", "job", "entry"),
    Index("updates_merged", "job", "version"),
)
# Two admitted updates for one lease cannot exist, whatever races.
Index(
    "updates_one_per_lease",
    updates.c.lease,
    unique=True,
    sqlite_where=updates.c.status != "refused",
    postgresql_where=updates.c.status != "refused",
)

# How many updates and leases ended how, counted in the transaction that ended them: what an operator asks every second
# must not cost more the longer a job runs.
tallies = Table(
    "tallies",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("silo", String, ForeignKey("silos.name"), primary_key=True),
    Column("outcome", String, primary_key=True),  # merged | refused | retired of updates, released of leases
    Column("reason", String, primary_key=True),  # "" for merged
    Column("count", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),  # of merged updates
    Column("staleness", Integer, nullable=False),  # their sum
    Column("newest", Float, nullable=False),  # when it was last counted
    Column("fault", String, nullable=False),  # of the newest release: exception and line of the job's code
)
steps = Table(  # an aggregation between its two transactions
    "steps",
    metadata,
    Column("id", String, primary_key=True),
    Column("job", String, ForeignKey("jobs.id"), nullable=False),
    Column("head", Integer, nullable=False),
    Column("status", String, nullable=False),  # frozen | published | abandoned
    Column(
        "plan", String, nullable=False
    ),  # JSON: the buffer that closed, scalars, who was absent, what closed it
    Index("steps_status", "job", "status"),
)
revivals = Table(
    "revivals",
    metadata,
    Column("id", String, primary_key=True),
    Column("job", String, ForeignKey("jobs.id"), nullable=False),
    Column("version", Integer, nullable=False),  # the head it began from
    Column("reviver", String, nullable=False),
    Column("teachers", String, nullable=False),  # JSON: silo → its newest merged update
    Column("claimed_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("status", String, nullable=False),  # claimed | done | used, dropped | skipped
    Column("reason", String, nullable=False, default=""),  # why it was dropped or skipped
    Column("delta", String),  # digest
    Column("report", String),  # JSON
    Column("entry", Integer),  # revival.performed, or revival.skipped where there was no result
    Index("revivals_status", "job", "status", "reason"),
    Index("revivals_newest", "job", "version"),
)
evaluations = Table(
    "evaluations",
    metadata,
    Column("job", String, ForeignKey("jobs.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("silo", String, primary_key=True),
    Column("split", String, primary_key=True),
    Column("metrics", String, nullable=False),  # JSON
    Column("num_examples", Integer, nullable=False),
    Column("entry", Integer, nullable=False),
)
