"""The consumer: batches of records from Kafka into PostgreSQL, each exactly once.

- `service`: the process: settings in, exit out.
- `loop`: fetch a batch, store it while the next is fetched, go on; the only place where Kafka and
  PostgreSQL meet.
- `fetcher`: batches of what the client is assigned, fetched and read.
- `client`: aiokafka's consumer, where it has to be known from the inside.
- `assignment`: which partitions this generation of the group may store, and from where.
- `log`: whether a partition's log is still the one that is stored.
- `topic`: the topic's own settings, made and checked.
- `failpoints`: where a test can end the process.
"""
