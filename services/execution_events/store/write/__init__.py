"""Writes: each in one transaction, whole or not at all.

- `batches`: a batch of records, with offsets and watermarks.
- `events`: folded events into their tables.
- `dead_letters`: refused records, listed, retried and discarded.
- `prune`: executions, sources and dead letters that are old.
"""
