"""Limits on concurrent requests and streams, per caller and per process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge
from starlette.exceptions import HTTPException

from execution_events.metrics import ReaderMetrics
from execution_events.settings import ReaderSettings


class LimitError(HTTPException):
    """Retry later, with fewer concurrent requests: 429 with `Retry-After`."""

    def __init__(self, message: str) -> None:
        # When a slot becomes free depends on other requests: a second is a guess.
        super().__init__(429, message, {"Retry-After": "1"})


class ConcurrencyLimits:
    """Slots for responses in progress, one each; without a free slot a request is refused at once.

    For use in one event loop.
    """

    def __init__(self, settings: ReaderSettings, metrics: ReaderMetrics) -> None:
        self.requests = _SlotLimit(
            "requests",
            settings.max_requests,
            settings.max_requests_per_token,
            metrics,
            metrics.open_requests,
        )
        self.streams = _SlotLimit(
            "streams",
            settings.max_streams,
            settings.max_streams_per_token,
            metrics,
            metrics.open_streams,
        )

    @contextmanager
    def slot(self, limit_key: str) -> Iterator["Slot"]:
        """Hold a request slot of the caller with `limit_key` until the block ends.

        The block covers the whole response, until its last byte is sent or the client disconnects.
        Raises `LimitError`.
        """
        slot = Slot(self, limit_key)
        try:
            yield slot
        finally:
            slot.release()


class Slot:
    """The slot of one response: a request slot, which can be exchanged for a stream slot."""

    def __init__(self, limits: ConcurrencyLimits, limit_key: str) -> None:
        self._limits = limits
        self._limit_key = limit_key
        limits.requests.acquire(limit_key)
        self._held = limits.requests

    def become_stream(self) -> None:
        """Exchange the request slot for a stream slot.

        Raises `LimitError`, and then keeps the request slot.
        """
        if self._held is not self._limits.streams:
            self._limits.streams.acquire(self._limit_key)
            self.release()
            self._held = self._limits.streams

    def release(self) -> None:
        """Free the slot; `ConcurrencyLimits.slot` calls this once."""
        self._held.release(self._limit_key)


class _SlotLimit:
    """At most `per_process` slots in use, at most `per_caller` of them under one key."""

    def __init__(
        self, kind: str, per_process: int, per_caller: int, metrics: ReaderMetrics, gauge: Gauge
    ) -> None:
        self._kind = kind
        self._per_process = per_process
        self._per_caller = per_caller
        self._metrics = metrics
        self._in_use = 0
        self._by_key: Counter[str] = Counter()
        gauge.set_function(lambda: self._in_use)

    def acquire(self, limit_key: str) -> None:
        if self._by_key[limit_key] >= self._per_caller:
            self._metrics.refused.labels(f"caller_{self._kind}").inc()
            raise LimitError(f"too many concurrent {self._kind} from this caller; retry later")
        if self._in_use >= self._per_process:
            self._metrics.refused.labels(f"process_{self._kind}").inc()
            raise LimitError(f"too many concurrent {self._kind}; retry later")
        self._in_use += 1
        self._by_key[limit_key] += 1

    def release(self, limit_key: str) -> None:
        self._in_use -= 1
        self._by_key[limit_key] -= 1
        if not self._by_key[limit_key]:
            # Otherwise memory grows with every caller ever seen.
            del self._by_key[limit_key]
