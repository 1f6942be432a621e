"""Reads: snapshots of executions, and what changed since.

- `events`: pages and streams of an execution's events.
- `selection`: filters, in SQL and in Python alike.
- `changes`: revisions of executions, and the changes between them.
- `feeds`: the changes of watched executions, found by one query for all watchers.
- `pool`: connections for reading, shared by many requests.
"""
