"""Views of tiers: a version may travel in several forms."""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('views',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('tier', sa.String(), nullable=False),
    sa.Column('digest', sa.String(), nullable=False),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('job', 'version', 'tier')
    )
    op.execute(
        "INSERT INTO views (job, version, tier, digest, bytes, entry) "
        "SELECT job, number, '', view, bytes, view_entry FROM versions WHERE view IS NOT NULL"
    )
    with op.batch_alter_table('versions', schema=None) as batch_op:
        batch_op.drop_column('view')
        batch_op.drop_column('view_entry')
        batch_op.drop_column('bytes')
