"""Delivery of records to Kafka, in order within each partition.

- `direct`: without a spool; unacknowledged records are lost with the process.
- `spooled`: through a spool; `commit`: one commit of it; `relay`: its records in memory.
- `drain`: a spool that a process left behind, sent to the end.
- `sender`: batches of one source, each sent until it is acknowledged.
- `connection`: the producer, replaced when it fails.
- `task`: tasks that are restarted when they fail.
"""
