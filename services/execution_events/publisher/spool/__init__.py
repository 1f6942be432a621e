"""Spools: records on the disk until Kafka has acknowledged them.

- `spool`: the records of one spool.
- `file`: its SQLite file: connection, errors, summary.
- `queries`: all SQL.
- `directory`: the spools of a directory, and their locks.
"""
