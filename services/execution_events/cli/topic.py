"""`topic create`: the topic, as the guarantees need it."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.numbers import positive
from execution_events.settings import Settings

DEFAULT_PARTITIONS = 6
DEFAULT_RETENTION_DAYS = 30


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    topic = commands.add_parser("topic", help="the topic of the events")
    create = topic.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "create",
        help="create it; leave it as it is where it exists",
        description="Create the topic so that an acknowledged record outlives any one broker.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    create.add_argument(
        "--partitions",
        type=positive,
        default=DEFAULT_PARTITIONS,
        help="the most consumers that can share the work",
    )
    create.add_argument("--replication", type=positive, default=3, help="copies of each record")
    create.add_argument(
        "--min-insync-replicas",
        type=positive,
        default=2,
        help="copies that must be written before a record is acknowledged",
    )
    create.add_argument(
        "--retention-days",
        type=positive,
        default=DEFAULT_RETENTION_DAYS,
        help="how long records are kept: as long as consumers may be away, and more",
    )
    create.set_defaults(run=_create)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.consumer.topic import DAY_MS, create_topic
    created = asyncio.run(
        create_topic(
            settings,
            partitions=arguments.partitions,
            replication=arguments.replication,
            min_insync_replicas=arguments.min_insync_replicas,
            retention_ms=arguments.retention_days * DAY_MS,
        )
    )
    print(f"created: {settings.topic}" if created else f"exists, left as it is: {settings.topic}")
    return 0
