"""Spools: records on the disk until Kafka has acknowledged them.

- `spool`: the records of one spool.
- `file`: its SQLite file: schema, connection, summary.
- `directory`: the spools of a directory, and their locks.
"""
