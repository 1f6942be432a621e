"""PostgreSQL: all SQL, and the only importer of asyncpg.

- `database`: connections with every time limit set, and the translation of driver errors.
- `pool`: connections for reading, shared by many requests.
- `migrate`: the schema, its version and its roles.
- `batches`: one batch of records, stored in one transaction.
- `events`: folded events into their tables.
- `listing`: the events of an execution, for the reader.
- `revisions`: what the revisions of executions are, and what changed between them.
- `dead_letters`: the records that were refused.
- `prune`: what nothing has changed for long, removed.
- `provision`: an empty database and its owner.
- `sql`: the loader of `queries`.
- `queries/*.sql`, `migrations/*.sql`, `privileges.sql`: the SQL itself.
"""
