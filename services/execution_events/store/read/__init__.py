"""Reads: snapshots of executions, and the changes between them.

- `events`: pages and streams of an execution's events.
- `executions`: pages of executions.
- `selection`: filters of events, equal to those in SQL.
- `changes`: revisions of executions, and the changes between them.
- `feeds`: changes of watched executions, read by one query for all watchers.
- `pool`: a pool of connections.
"""
