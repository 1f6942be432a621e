"""The management port, apart from the API: `/livez`, `/readyz`, `/metrics`; and every metric."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.observability import Logger
from execution_events.serving import serve

_log = Logger(__name__)

_PROBE_INTERVAL = 5
_PROBE_TIMEOUT = 5
_NOW_TIMEOUT = 1.8
_PROBE_PAUSE = 0.5
"""Seconds between attempts of one probe."""

Readiness = Callable[[], Awaitable[list[str]]]
"""Gives the reasons why a service is not ready; none when it is."""


class Probe:
    """A request to a peer every 5 s, apart from the service's work.

    `problem` is the cause for which the peer has not answered the last one within 5 s, None where
    it has. `check` raises `RetryableError`, which is tried again within the 5 s, or another error
    of this package.
    """

    def __init__(self, peer: str, check: Callable[[], Awaitable[None]], answered: Gauge) -> None:
        self.problem: str | None = f"{peer}: not asked yet"
        self._peer = peer
        self._check = check
        self._answered = answered
        self._is_logged = False
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while the context is open."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def now(self) -> str | None:
        """Return why the peer does not answer one more request, at most after 2 s."""
        try:
            async with asyncio.timeout(_NOW_TIMEOUT):
                await self._ask()
        except TimeoutError:
            return f"{self._peer}: no answer within {_NOW_TIMEOUT} s"
        except ExecutionEventsError as error:
            return str(error)
        return None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time() + _PROBE_INTERVAL
            self._note(await self._try())
            await asyncio.sleep(max(0, at - loop.time()))

    async def _try(self) -> str | None:
        problem = f"{self._peer}: no answer within {_PROBE_TIMEOUT} s"
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                while True:
                    try:
                        await self._ask()
                    except RetryableError as error:
                        problem = str(error)
                        await asyncio.sleep(_PROBE_PAUSE)
                    except ExecutionEventsError as error:
                        return str(error)
                    except Exception as error:
                        # Whatever a library raises: a probe that has ended would tell nothing.
                        _log.exception("probe_failed", peer=self._peer)
                        return f"{self._peer}: {type(error).__name__}: {error}"
                    else:
                        return None
        except TimeoutError:
            return problem

    async def _ask(self) -> None:
        async with self._asking:
            await self._check()
        self._answered.set_to_current_time()

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            _log.warning("peer_unavailable", error=problem)
            self._is_logged = True
        elif problem is None and self._is_logged:
            _log.info("peer_answers", peer=self._peer)
            self._is_logged = False
        self.problem = problem


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


@asynccontextmanager
async def serve_management(
    host: str, port: int, registry: CollectorRegistry, readiness: Readiness
) -> AsyncIterator[str]:
    """Serve the management port and give its address.

    `/livez` answers 200 while the process's loop turns. `/readyz` answers 200, or 503 with the
    reasons. `/metrics` is Prometheus's text format.
    """

    async def livez(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(_: Request) -> Response:
        reasons = await readiness()
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200
        )

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    async with serve(Starlette(routes=routes), host, port) as address:
        yield address
