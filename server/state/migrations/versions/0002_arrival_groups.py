"""Which arrival group a lease was issued for, and what its schedule rests on."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("leases") as batch_op:
        batch_op.add_column(sa.Column("arrival_group", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("expected", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("step_seconds", sa.Float(), nullable=True))
    with op.batch_alter_table("updates") as batch_op:
        batch_op.create_index("updates_merged", ["job", "version"], unique=False)
