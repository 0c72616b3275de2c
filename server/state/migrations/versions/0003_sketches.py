"""What shares of jobs follow from: a score, and sketches of the updates it was taken from."""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('jobs', sa.Column('score', sa.Float(), nullable=True))
    op.create_table('sketches',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('newest', sa.LargeBinary(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('job')
    )
