"""Views: a version may travel in another form than it is stored in."""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('versions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('view', sa.String(), nullable=True))
        batch_op.add_column(sa.Column('view_entry', sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('versions', schema=None) as batch_op:
        batch_op.drop_column('view_entry')
        batch_op.drop_column('view')
