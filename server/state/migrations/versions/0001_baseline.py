"""The schema of the first release."""

import sqlalchemy as sa
from alembic import op

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('certificates',
    sa.Column('fingerprint', sa.String(), nullable=False),
    sa.Column('identity', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=True),
    sa.Column('serial', sa.String(), nullable=False),
    sa.Column('not_after', sa.Float(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('replaced_at', sa.Float(), nullable=True),
    sa.PrimaryKeyConstraint('fingerprint')
    )
    op.create_table('checkpoints',
    sa.Column('size', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('note', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('size')
    )
    op.create_table('entries',
    sa.Column('index', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('data', sa.LargeBinary(), nullable=False),
    sa.Column('signed', sa.LargeBinary(), nullable=True),
    sa.PrimaryKeyConstraint('index')
    )
    op.create_table('epoch',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('epoch', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('jobs',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('terms', sa.LargeBinary(), nullable=False),
    sa.Column('terms_digest', sa.String(), nullable=False),
    sa.Column('manifest', sa.LargeBinary(), nullable=False),
    sa.Column('submitted_at', sa.Float(), nullable=False),
    sa.Column('submitted_index', sa.Integer(), nullable=False),
    sa.Column('resumed_at', sa.Float(), nullable=True),
    sa.Column('ended_at', sa.Float(), nullable=True),
    sa.Column('pruned_at', sa.Float(), nullable=True),
    sa.Column('head', sa.Integer(), nullable=False),
    sa.Column('best', sa.Integer(), nullable=True),
    sa.Column('best_value', sa.Float(), nullable=True),
    sa.Column('judged', sa.Integer(), nullable=True),
    sa.Column('unimproved', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('named',
    sa.Column('digest', sa.String(), nullable=False),
    sa.Column('entry', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('pruned', sa.Integer(), nullable=True),
    sa.PrimaryKeyConstraint('digest', 'entry')
    )
    with op.batch_alter_table('named', schema=None) as batch_op:
        batch_op.create_index('named_entry', ['entry'], unique=False)
        batch_op.create_index('named_pruned', ['pruned'], unique=False)

    op.create_table('nodes',
    sa.Column('level', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('index', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('hash', sa.LargeBinary(), nullable=False),
    sa.PrimaryKeyConstraint('level', 'index')
    )
    op.create_table('sealed',
    sa.Column('commit', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=True),
    sa.Column('salt', sa.String(), nullable=True),
    sa.Column('fields', sa.String(), nullable=True),
    sa.PrimaryKeyConstraint('commit')
    )
    op.create_table('silos',
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('agents', sa.Integer(), nullable=False),
    sa.Column('invited_at', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('name')
    )
    op.create_table('decisions',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('decision', sa.String(), nullable=False),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('job', 'silo')
    )
    op.create_table('evaluations',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('split', sa.String(), nullable=False),
    sa.Column('metrics', sa.String(), nullable=False),
    sa.Column('num_examples', sa.Integer(), nullable=False),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('job', 'version', 'silo', 'split')
    )
    op.create_table('keys',
    sa.Column('keyid', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('purpose', sa.String(), nullable=False),
    sa.Column('public', sa.LargeBinary(), nullable=False),
    sa.Column('retired_at', sa.Float(), nullable=True),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('keyid')
    )
    op.create_table('leases',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('nonce', sa.String(), nullable=False),
    sa.Column('issued_at', sa.Float(), nullable=False),
    sa.Column('deadline', sa.Float(), nullable=False),
    sa.Column('split', sa.String(), nullable=False),
    sa.Column('local_steps', sa.Integer(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('fault', sa.String(), nullable=False),
    sa.Column('released_at', sa.Float(), nullable=True),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('leases', schema=None) as batch_op:
        batch_op.create_index('leases_newest', ['silo', 'job', 'entry'], unique=False)
        batch_op.create_index('leases_issued', ['silo', 'job', 'issued_at'], unique=False)
        batch_op.create_index('leases_open', ['silo', 'job', 'status'], unique=False)
        batch_op.create_index('leases_status', ['status', 'silo'], unique=False)
        batch_op.create_index('leases_tried', ['job', 'kind', 'version'], unique=False)

    op.create_table('steps',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('head', sa.Integer(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('plan', sa.String(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('steps', schema=None) as batch_op:
        batch_op.create_index('steps_status', ['job', 'status'], unique=False)

    op.create_table('tallies',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('outcome', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('count', sa.Integer(), nullable=False),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.Column('staleness', sa.Integer(), nullable=False),
    sa.Column('newest', sa.Float(), nullable=False),
    sa.Column('fault', sa.String(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('job', 'silo', 'outcome', 'reason')
    )
    op.create_table('tokens',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('hash', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('expires_at', sa.Float(), nullable=False),
    sa.Column('used_at', sa.Float(), nullable=True),
    sa.Column('request', sa.String(), nullable=True),
    sa.Column('agent', sa.Integer(), nullable=True),
    sa.Column('failures', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('updates',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('silo', sa.String(), nullable=False),
    sa.Column('lease', sa.String(), nullable=False),
    sa.Column('base', sa.Integer(), nullable=False),
    sa.Column('delta', sa.String(), nullable=False),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.Column('examples', sa.Integer(), nullable=True),
    sa.Column('received_at', sa.Float(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('version', sa.Integer(), nullable=True),
    sa.Column('staleness', sa.Integer(), nullable=True),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.ForeignKeyConstraint(['silo'], ['silos.name'], ),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('updates', schema=None) as batch_op:
        batch_op.create_index('updates_base', ['job', 'silo', 'base'], unique=False)
        batch_op.create_index('updates_newest', ['job', 'entry'], unique=False)
        batch_op.create_index('updates_job_status', ['job', 'status', 'entry'], unique=False)
        batch_op.create_index('updates_one_per_lease', ['lease'], unique=True, sqlite_where=sa.text("status != 'refused'"), postgresql_where=sa.text("status != 'refused'"))

    op.create_table('versions',
    sa.Column('job', sa.String(), nullable=False),
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('parameters', sa.String(), nullable=False),
    sa.Column('optimizer', sa.String(), nullable=True),
    sa.Column('ema', sa.String(), nullable=True),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.Column('scalars', sa.String(), nullable=False),
    sa.Column('published_at', sa.Float(), nullable=False),
    sa.Column('handed_out_at', sa.Float(), nullable=True),
    sa.Column('entry', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['job'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('job', 'number')
    )


def downgrade() -> None:
    op.drop_table('versions')
    with op.batch_alter_table('updates', schema=None) as batch_op:
        batch_op.drop_index('updates_one_per_lease', sqlite_where=sa.text("status != 'refused'"), postgresql_where=sa.text("status != 'refused'"))
        batch_op.drop_index('updates_job_status')
        batch_op.drop_index('updates_base')
        batch_op.drop_index('updates_newest')

    op.drop_table('updates')
    op.drop_table('tokens')
    op.drop_table('tallies')
    with op.batch_alter_table('steps', schema=None) as batch_op:
        batch_op.drop_index('steps_status')

    op.drop_table('steps')
    with op.batch_alter_table('leases', schema=None) as batch_op:
        batch_op.drop_index('leases_tried')
        batch_op.drop_index('leases_status')
        batch_op.drop_index('leases_open')
        batch_op.drop_index('leases_issued')
        batch_op.drop_index('leases_newest')

    op.drop_table('leases')
    op.drop_table('keys')
    op.drop_table('evaluations')
    op.drop_table('decisions')
    op.drop_table('silos')
    op.drop_table('sealed')
    op.drop_table('nodes')
    op.drop_table('jobs')
    op.drop_table('epoch')
    op.drop_table('entries')
    op.drop_table('checkpoints')
    op.drop_table('certificates')
