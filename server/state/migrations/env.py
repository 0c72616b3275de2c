"""Alembic's entry point: migrations run on the connection that `server.state.database.migrate` opened."""

from alembic import context

from server.state.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
    transaction_per_migration=True,
)
context.run_migrations()
