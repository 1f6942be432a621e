"""Delivery: records to Kafka, in order within each partition.

- `direct`: without a spool; what is not acknowledged is lost with the process.
- `spooled`: through a spool; `turn`: one exchange between the spool and the sender.
- `sender`: batches of one source, each sent until it is acknowledged.
- `task`: tasks that are restarted while a publisher is open.
"""
