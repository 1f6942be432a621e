"""Apache Kafka: everything that knows aiokafka from the inside, which is 0.14.

- `connection`: how every client reaches the brokers: addresses, TLS, SASL.
- `producer`: an idempotent producer that can be ended while Kafka is away.
- `consumer`: a consumer whose partitions fail one by one.
- `codecs`: decoders of compressed batches, with a limit on their expanded size.
- `brokers`: single requests to single brokers, whose failure names its cause.
- `topic`: the topic, created, altered and checked.
- `protocol`: requests and options that aiokafka lacks.
"""
