"""Revivals, and silos' word about them."""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('revivals',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('reviver', sa.String(), nullable=False),
    sa.Column('teachers', sa.String(), nullable=False),
    sa.Column('claimed_at', sa.Float(), nullable=False),
    sa.Column('deadline', sa.Float(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('delta', sa.String(), nullable=True),
    sa.Column('report', sa.String(), nullable=True),
    sa.Column('entry', sa.Integer(), nullable=True),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('revivals', schema=None) as batch_op:
        batch_op.create_index('revivals_status', ['job', 'status', 'reason'], unique=False)
        batch_op.create_index('revivals_newest', ['job', 'version'], unique=False)

    with op.batch_alter_table('decisions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('revival', sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table('decisions', schema=None) as batch_op:
        batch_op.drop_column('revival')

    with op.batch_alter_table('revivals', schema=None) as batch_op:
        batch_op.drop_index('revivals_newest')
        batch_op.drop_index('revivals_status')

    op.drop_table('revivals')
