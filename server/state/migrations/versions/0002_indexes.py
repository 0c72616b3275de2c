"""Indexes for what is asked at every task: without them each answer walks all leases or updates of a job."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("leases_status", "leases", ["status", "silo"])
    op.create_index("leases_issued", "leases", ["silo", "job", "issued_at"])
    op.create_index("leases_tried", "leases", ["job", "kind", "version"])
    op.create_index("updates_base", "updates", ["job", "silo", "base"])


def downgrade() -> None:
    op.drop_index("updates_base", "updates")
    op.drop_index("leases_tried", "leases")
    op.drop_index("leases_issued", "leases")
    op.drop_index("leases_status", "leases")
