"""Apache Kafka: the only package that depends on the internals of aiokafka, version 0.14.

- `connection`: addresses, TLS and SASL of every client.
- `producer`: an idempotent producer that can be closed while Kafka is unavailable.
- `consumer`: a consumer that keeps the errors of each partition apart.
- `codecs`: decoders of compressed batches, with a limit on their expanded size.
- `brokers`: requests to individual brokers, for health checks and offsets.
- `topic`: the topic, created, altered and checked.
- `errors`: translation of aiokafka's errors.
- `protocol`: requests and options that aiokafka lacks.
"""
