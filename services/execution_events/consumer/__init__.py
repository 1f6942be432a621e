"""The consumer, which stores batches of records from Kafka in PostgreSQL exactly once.

- `service`: the process: connect, consume, and replace a failed Kafka client.
- `readiness`: the reasons why records are not stored.
- `loop`: storage of a batch while the next one is fetched.
- `fetcher`: batches of the seeded partitions, fetched and decoded.
- `assignment`: the partitions of this member in one generation of the group.
- `seeder`: the seeding of these partitions, each of which may be delayed or halted.
- `log_check`: comparison of a partition's log with its stored position.
- `probe`: requests to Kafka for readiness and lag.
- `reporter`: reports on these partitions, for operators.
"""
