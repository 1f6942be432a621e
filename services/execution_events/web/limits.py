"""How much is done at a time: for one caller, and in this process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge
from starlette.exceptions import HTTPException

from execution_events.metrics import ReaderMetrics
from execution_events.settings import ReaderSettings


class LimitError(HTTPException):
    """Try again later, with less at a time: 429, and a second as how long others take is open."""

    def __init__(self, message: str) -> None:
        super().__init__(429, message, {"Retry-After": "1"})


class Limits:
    """Places for answers: each takes one, and nobody waits for one, so nothing can pile up.

    For use in one event loop.
    """

    def __init__(self, settings: ReaderSettings, metrics: ReaderMetrics) -> None:
        self.requests = _Limit(
            "requests",
            settings.max_requests,
            settings.max_requests_per_token,
            metrics,
            metrics.open_requests,
        )
        self.streams = _Limit(
            "streams",
            settings.max_streams,
            settings.max_streams_per_token,
            metrics,
            metrics.open_streams,
        )

    @contextmanager
    def place(self, key: str) -> Iterator["Place"]:
        """A place among the requests for as long as the block runs, however it ends.

        The block is the whole answer, until its last byte is handed over or its client is gone.
        Raises `LimitError`.
        """
        place = Place(self, key)
        try:
            yield place
        finally:
            place.leave()


class Place:
    """The place of one answer: a request's, until it is known to be a stream's."""

    def __init__(self, limits: Limits, key: str) -> None:
        self._limits = limits
        self._key = key
        limits.requests.enter(key)
        self._taken = limits.requests

    def become_stream(self) -> None:
        """Take a place among the streams, and leave the one among the requests.

        Raises `LimitError`, and then it is still a request's.
        """
        if self._taken is not self._limits.streams:
            self._limits.streams.enter(self._key)
            self.leave()
            self._taken = self._limits.streams

    def leave(self) -> None:
        """For `Limits.place`."""
        self._taken.leave(self._key)


class _Limit:
    """At most `of_process` at a time, of them `of_caller` with one key."""

    def __init__(
        self, what: str, of_process: int, of_caller: int, metrics: ReaderMetrics, gauge: Gauge
    ) -> None:
        self._what = what
        self._of_process = of_process
        self._of_caller = of_caller
        self._metrics = metrics
        self._all = 0
        self._by_key: Counter[str] = Counter()
        gauge.set_function(lambda: self._all)

    def enter(self, key: str) -> None:
        if self._by_key[key] >= self._of_caller:
            self._metrics.refused.labels(f"caller_{self._what}").inc()
            raise LimitError(f"too many {self._what} of this caller at a time; try again")
        if self._all >= self._of_process:
            self._metrics.refused.labels(f"process_{self._what}").inc()
            raise LimitError(f"too many {self._what} at a time; try again")
        self._all += 1
        self._by_key[key] += 1

    def leave(self, key: str) -> None:
        self._all -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            # Or callers that came once would be kept for ever.
            del self._by_key[key]
