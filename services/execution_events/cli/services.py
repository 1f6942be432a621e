"""`consumer` and `reader`: one service in the foreground."""

import argparse
import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from execution_events.cli.extras import extra
from execution_events.logs import Logger
from execution_events.settings import Settings

_log = Logger(__name__)


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    consumer = commands.add_parser("consumer", help="store the topic's records, exactly once")
    consumer.set_defaults(run=_consumer)
    reader = commands.add_parser("reader", help="answer GET /v1/executions/{id}/events")
    reader.set_defaults(run=_reader)


def run_until_stopped(
    service: Callable[[asyncio.Event], Awaitable[int | None]],
    limit: float | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run `service` with an event that SIGINT or SIGTERM sets; a second signal kills at once.

    With a `limit` the process ends at most that many seconds after the first, in order or not.
    Without a `loop_factory` it runs on asyncio's own loop.
    """

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()
            if limit is not None:
                loop.call_later(limit, _give_up, limit)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        return await service(stop) or 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(run())


def _give_up(limit: float) -> None:
    _log.error("not stopped in time", seconds=limit)
    os._exit(1)


def _consumer(_: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.consumer.service import run_consumer
    # Not on uvloop: to write to a connection that was reset is another error there than aiokafka
    # expects, which ends its tasks. It would be no faster either.
    return run_until_stopped(lambda stop: run_consumer(settings, stop), settings.stop_timeout)


def _reader(_: argparse.Namespace, settings: Settings) -> int:
    with extra("reader"):
        import uvloop

        from execution_events.reader.service import run_reader
    return run_until_stopped(
        lambda stop: run_reader(settings, stop), settings.stop_timeout, uvloop.new_event_loop
    )
