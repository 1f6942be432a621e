"""PostgreSQL: all SQL, and the only importer of asyncpg.

- `connection`: connections with every timeout set, and the translation of the driver's errors.
- `probe`: a request over a connection of its own, for readiness.
- `sql`: the loader of `queries/*.sql`.
- `schema/`: migrations, roles and their privileges, an empty database and its owner.
- `write/`: batches of records, events, dead letters, pruning.
- `read/`: lists, revisions and changes of executions, feeds of watched ones.
"""
