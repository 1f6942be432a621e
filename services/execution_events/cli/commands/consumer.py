"""`consumer`: the consumer in the foreground."""

import argparse
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.settings import Settings


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    consumer = commands.add_parser(
        "consumer",
        help="store the topic's records in PostgreSQL, each exactly once",
        description="Store the topic's records in PostgreSQL, each exactly once. Start more "
        "consumers to share the topic's partitions. SIGINT or SIGTERM stops it after the current "
        "batch.",
    )
    consumer.set_defaults(run=_run)


def _run(_: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.consumer.service import run_consumer
    # Not on uvloop: a write to a reset connection raises another error there than aiokafka
    # expects, which ends its tasks. uvloop would be no faster either.
    return run_until_stopped(lambda stop: run_consumer(settings, stop), settings.stop_timeout)
