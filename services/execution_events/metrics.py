"""Every metric of the services, by name."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ConsumerMetrics:
    """What a consumer counts, since its process started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # outcome: stored, duplicate (dropped by its source's watermark) or dead_letter.
        self.records = Counter(
            "execution_events_records", "Records by outcome.", ["outcome"], registry=registry
        )
        # A batch is one transaction.
        self.batch_seconds = Histogram(
            "execution_events_batch_seconds", "Time to store a batch.", registry=registry
        )
        # Batches dropped because another consumer had moved the stored offset.
        self.fenced = Counter(
            "execution_events_fenced_batches", "Batches dropped by fencing.", registry=registry
        )
        # Attempts that failed because PostgreSQL or Kafka was away. cause: an SQLSTATE, or the type
        # of the client library's error.
        self.retries = Counter(
            "execution_events_retries", "Attempts to retry by cause.", ["cause"], registry=registry
        )
        # Records that a log had lost before its partition was first stored.
        self.unseen = Counter(
            "execution_events_unseen_records",
            "Offsets before the beginning of partitions that were stored for the first time.",
            registry=registry,
        )
        # Of consumers that were frozen or gone while they stored a batch.
        self.ended_sessions = Counter(
            "execution_events_ended_sessions",
            "Sessions of PostgreSQL that held a partition for too long and were ended.",
            registry=registry,
        )
        # A source with one sequence for several partitions, as our publisher is, makes them always.
        self.sequence_gaps = Counter(
            "execution_events_sequence_gaps",
            "Gaps in the sequences of a source in one partition.",
            registry=registry,
        )
        self.without_key = Counter(
            "execution_events_records_without_key", "Stored without a key.", registry=registry
        )
        # Last stable offset - fetch position + what is read but not stored.
        self.lag = Gauge(
            "execution_events_lag_records", "Records to store.", ["partition"], registry=registry
        )
        # 1 while the partition is halted because its log is not the one that was stored.
        self.halted = Gauge(
            "execution_events_partition_halted", "Halted.", ["partition"], registry=registry
        )
        # Seconds since the epoch; 0 before the first. peer: kafka or postgresql.
        self.answered = Gauge(
            "execution_events_answered_timestamp_seconds",
            "When a peer last answered the probe.",
            ["peer"],
            registry=registry,
        )
        # Seconds since the epoch; 0 before the first.
        self.last_progress = Gauge(
            "execution_events_last_progress_timestamp_seconds",
            "When a batch was last stored.",
            registry=registry,
        )


class ReaderMetrics:
    """What a reader counts, since its process started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "execution_events_requests", "Requests by status.", ["status"], registry=registry
        )
        self.request_seconds = Histogram(
            "execution_events_request_seconds",
            "Time until an answer begins.",
            registry=registry,
        )
        # cache: nothing had changed, also 304; page: read from the database; stream: sent while it
        # is read; watch: and then its changes.
        self.answers = Counter(
            "execution_events_lists", "Lists by where they came from.", ["way"], registry=registry
        )
        # Callers: no_token, bad_token, issuer_away. Bounds: caller_requests, process_requests,
        # caller_streams, process_streams. Connections: connections (no room), evicted (made room),
        # head_time, malformed, head_size, body, slow_reader. Watches: slow_watcher.
        self.refused = Counter(
            "execution_events_refused", "Refused by reason.", ["reason"], registry=registry
        )
        self.open_requests = Gauge(
            "execution_events_open_requests", "Requests being answered.", registry=registry
        )
        # Seconds since the epoch; 0 before the first. peer: postgresql.
        self.answered = Gauge(
            "execution_events_answered_timestamp_seconds",
            "When a peer last answered the probe.",
            ["peer"],
            registry=registry,
        )
        self.open_streams = Gauge(
            "execution_events_open_streams", "Streams that are open.", registry=registry
        )
        # Seconds since the epoch; it falls behind while the token file is broken or the issuer
        # away, and what was read before stays in force.
        self.credentials_read = Gauge(
            "execution_events_credentials_read_timestamp_seconds",
            "When tokens or keys were last found right.",
            registry=registry,
        )
