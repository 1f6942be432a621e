"""The consumer: batches of records from Kafka into PostgreSQL, each exactly once.

- `service`: the process: settings in, exit out.
- `loop`: fetch a batch, store it while the next is fetched, go on; the only place where Kafka and
  PostgreSQL meet.
- `fetcher`: batches of what the client is assigned, fetched and read.
- `client`: aiokafka's consumer, where it has to be known from the inside.
- `codecs`: decoders of compressed batches, with a limit on what one may expand to.
- `assignment`: which partitions this generation of the group may store, and from where.
- `seeding`: seeds, delays and halts these partitions, each by itself.
- `log`: whether a partition's log is still the one that is stored.
- `brokers`: single requests to single brokers, whose failure tells its cause.
- `probe`: whether Kafka answers, for readiness.
- `topic`: the topic's own settings, made and checked.
- `failpoints`: where a test can end the process.
"""
