"""The option `--wait`, for a server that is not up yet."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from execution_events.cli.arguments import duration
from execution_events.errors import MisconfiguredError, RetryableError
from execution_events.logs import Logger

_log = Logger(__name__)

_INTERVAL = 1
"""Seconds between two attempts."""

_Result = TypeVar("_Result")


def add_wait(command: argparse.ArgumentParser, server: str) -> None:
    """Add the option to a command."""
    command.add_argument(
        "--wait",
        type=duration,
        default=0,
        metavar="TIME",
        help=f"wait up to TIME, such as 60s or 5m, for {server} that is not up yet (default: do"
        " not wait)",
    )


async def until_reached(attempt: Callable[[], Awaitable[_Result]], wait: float) -> _Result:
    """Return the first result of `attempt`; repeat it for `wait` seconds after `RetryableError`.

    A wrong setting ends the wait.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    number = 0
    while True:
        try:
            return await attempt()
        except MisconfiguredError:
            raise
        except RetryableError as error:
            number += 1
            if loop.time() + _INTERVAL > deadline:
                raise
            _log.warning("server_unavailable", error=str(error), attempt=number)
        await asyncio.sleep(_INTERVAL)
