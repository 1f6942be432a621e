"""Every metric of the services: name, type, help text and labels.

`schemas/metrics.md` is generated from these definitions.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_PREFIX = "execution_events_"
_PARTITION = {"partition": "the partition's number"}
_ANSWERED = "answered_timestamp_seconds"
_ANSWERED_TEXT = "Unix time at which a peer last answered the health check; 0 before the first."
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class Definition(NamedTuple):
    """One metric; `name` is as exported, and `labels` describes the values of each label."""

    name: str
    type: str
    help: str
    labels: Mapping[str, str]


class _Metrics:
    """The metrics of one service, registered and defined in the order of their creation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.definitions: list[Definition] = []
        self._registry = registry

    def _counter(self, name: str, text: str, labels: Mapping[str, str] | None = None) -> Counter:
        return self._registered(Counter, name, text, labels, suffix="_total")

    def _gauge(self, name: str, text: str, labels: Mapping[str, str] | None = None) -> Gauge:
        return self._registered(Gauge, name, text, labels)

    def _histogram(self, name: str, text: str) -> Histogram:
        return self._registered(Histogram, name, text, None)

    def _registered(
        self,
        kind: type[_Metric],
        name: str,
        text: str,
        labels: Mapping[str, str] | None,
        suffix: str = "",
    ) -> _Metric:
        name, labels = _PREFIX + name, labels or {}
        self.definitions.append(Definition(name + suffix, kind.__name__.lower(), text, labels))
        return kind(name, text, list(labels), registry=self._registry)


class ConsumerMetrics(_Metrics):
    """The metrics of a consumer, since its process started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.records = self._counter(
            "records",
            "Records by outcome.",
            {
                "outcome": "`stored`, `duplicate` (at or below its source's watermark) or "
                "`dead_letter`"
            },
        )
        self.batch_seconds = self._histogram(
            "batch_seconds", "Seconds to store a batch in one transaction."
        )
        self.fenced = self._counter(
            "fenced_batches", "Batches dropped because another consumer had moved the offset."
        )
        self.retries = self._counter(
            "retries",
            "Failed attempts that are retried.",
            {"cause": "an SQLSTATE of PostgreSQL, or the type of the Kafka client's error"},
        )
        self.unseen = self._counter(
            "unseen_records",
            "Offsets already removed from a log when its partition was first stored.",
        )
        self.ended_sessions = self._counter(
            "ended_sessions",
            "Other consumers' PostgreSQL sessions ended because they kept a partition locked.",
        )
        # Regular for a source with one sequence over several partitions, like our publisher.
        self.sequence_gaps = self._counter(
            "sequence_gaps", "Gaps in the sequence of a source within one partition."
        )
        self.without_key = self._counter(
            "records_without_key", "Records stored although they have no key."
        )
        # From the last stable offset, so that open transactions do not count.
        self.lag = self._gauge("lag_records", "Records not stored yet.", _PARTITION)
        self.halted = self._gauge(
            "partition_halted",
            "1 while the partition is halted: continuing could lose or double-count occurrences.",
            _PARTITION,
        )
        self.answered = self._gauge(_ANSWERED, _ANSWERED_TEXT, {"peer": "`kafka` or `postgresql`"})
        self.last_progress = self._gauge(
            "last_progress_timestamp_seconds",
            "Unix time at which a batch was last stored; 0 before the first.",
        )


class ReaderMetrics(_Metrics):
    """The metrics of a reader, since its process started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.requests = self._counter(
            "requests", "Requests by HTTP status.", {"status": "the HTTP status code"}
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds until a response begins."
        )
        self.answers = self._counter(
            "lists",
            "Lists of events by how they were served.",
            {
                "way": "`cache` (unchanged since the last request, including status 304), `page` "
                "(read from the database), `stream` (sent while it is read) or `watch` (followed "
                "by its changes)"
            },
        )
        self.refused = self._counter(
            "refused",
            "Requests, connections and watches refused or closed, by reason.",
            {
                "reason": "credentials: `no_token`, `bad_token`, `issuer_away`; limits on "
                "concurrency: `caller_requests`, `process_requests`, `caller_streams`, "
                "`process_streams`; connections: `connections` (limit reached), `evicted` (closed "
                "to admit another), `head_time`, `malformed`, `head_size`, `body`, "
                "`slow_reader`; watches: `slow_watcher`"
            },
        )
        self.open_requests = self._gauge("open_requests", "Requests in progress.")
        self.answered = self._gauge(_ANSWERED, _ANSWERED_TEXT, {"peer": "`postgresql`"})
        self.open_streams = self._gauge("open_streams", "Streams in progress.")
        # Lags while the token file is invalid or the issuer unavailable; the credentials read
        # before remain valid.
        self.credentials_read = self._gauge(
            "credentials_read_timestamp_seconds",
            "Unix time at which the token file or the issuer's keys were last read successfully.",
        )
