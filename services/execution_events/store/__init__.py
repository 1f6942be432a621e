"""The store: all SQL, and the only importer of asyncpg.

- `connection`: connections with every timeout set, and translation of asyncpg's errors.
- `probe`: a health check over a connection of its own.
- `sessions`: the settings of each role's sessions.
- `pooler`: detection of a pooler in transaction mode.
- `sql`: loading of `queries/*.sql`.
- `schema/`: migrations, roles and privileges, provisioning of a database.
- `write/`: batches, partition progress, events, dead letters, pruning.
- `read/`: lists, revisions and changes of executions, feeds for watchers.
"""
