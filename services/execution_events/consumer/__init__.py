"""The consumer: batches of records from Kafka into PostgreSQL, each exactly once.

- `service`: the process: settings in, exit out.
- `loop`: fetch a batch, store it while the next is fetched, go on.
- `fetcher`: batches of what the client is assigned, fetched and read.
- `assignment`: which partitions this generation of the group may store, and from which offset.
- `seeding`: seeds, delays and halts these partitions, each by itself.
- `log_check`: whether a partition's log is still the stored one.
- `probe`: requests to Kafka, for readiness and lag.
"""
