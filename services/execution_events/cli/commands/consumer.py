"""`consumer`: the consumer in the foreground."""

import argparse
import gc
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.signals import run_until_stopped
from execution_events.settings import Settings, variable_of

_CONTAINERS = 100_000
"""New containers after which Python looks for cycles: about those of one batch."""


def add_commands(commands: Any) -> None:
    """Add the command to the command line."""
    consumer = commands.add_parser(
        "consumer",
        help="store the topic's records in PostgreSQL, each exactly once",
        description="Store the topic's records in PostgreSQL, each exactly once. Start more\n"
        "consumers to share the topic's partitions. SIGINT or SIGTERM stops it after the\n"
        "current batch.",
        epilog=f"""\
needs:
  {variable_of("kafka_bootstrap_servers")}  and a topic: `execution-events topic create`
  {variable_of("database_url")}             as execution_events_writer: `execution-events migrate`
serves, on {variable_of("management_host")} and {variable_of("management_port")} (127.0.0.1:8081):
  /livez    200 while the process works; else replace it
  /readyz   200 while records are stored; else 503 with the reasons
  /metrics  lag, batches, dead letters and more, for Prometheus: schemas/metrics.md
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    consumer.set_defaults(run=_run)


def _run(_: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.consumer.service import run_consumer
    # A batch has no cycles; with Python's default, looking for them takes a tenth of the time.
    gc.set_threshold(_CONTAINERS)
    # Not on uvloop: a write to a reset connection raises another error there than aiokafka
    # expects, which ends its tasks. uvloop would be no faster either.
    return run_until_stopped(lambda stop: run_consumer(settings, stop), settings.stop_timeout)
