"""Writes, each in one transaction.

- `batches`: batches of records, with offsets and watermarks.
- `progress`: offsets of partitions and watermarks of sources.
- `events`: folded events, and the changes of their executions.
- `states`: states of actions, for `events`.
- `known`: executions in memory as they were written last, for `events`.
- `rows`: rows of the table `event`.
- `rates`: numbers of records by minute and partition.
- `reports`: consumers' reports on their partitions.
- `dead_letters`: refused records, listed, retried and discarded.
- `prune`: deletion of old executions, watermarks and dead letters.
"""
