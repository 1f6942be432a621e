"""`topic`: the topic as the guarantees need it, and what to do where it was replaced."""

import argparse
import asyncio
from typing import Any, Literal

from execution_events.cli.extras import extra
from execution_events.cli.numbers import positive
from execution_events.errors import SettingsError
from execution_events.settings import TOPIC_PARTITIONS, TOPIC_RETENTION_DAYS, Settings


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    topic = commands.add_parser("topic", help="the topic of the events")
    subcommands = topic.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = subcommands.add_parser(
        "create",
        help="create it; where it exists, show what differs, or alter it",
        description="Create the topic so that an acknowledged record outlives any one broker, and "
        "is removed by the time at which Kafka took it (LogAppendTime). A topic that exists is "
        "compared: what differs is shown, and the exit code is 1 where something does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    create.add_argument(
        "--partitions",
        type=positive,
        default=TOPIC_PARTITIONS,
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
        default=TOPIC_RETENTION_DAYS,
        help="how long records are kept: as long as consumers may be away, and more",
    )
    create.add_argument(
        "--alter",
        action="store_true",
        help="change what differs, except replication and fewer partitions; with more partitions, "
        "further records of an execution may go to another one than its earlier records, so that "
        "ties of times follow the order of storing (counts stay exact)",
    )
    create.set_defaults(run=_create)
    accept = subcommands.add_parser(
        "accept",
        help="go on with a log that was created again, truncated, or has lost records",
        description="Show where the topic's log is not the one that is stored, and with --yes go "
        "on with it. Consumers may run: those that have halted go on within 15 seconds. What is "
        "counted stays counted, and records of a known ce_source and ce_sequence are not counted "
        "again.",
    )
    accept.add_argument(
        "--from",
        dest="start",
        choices=("beginning", "end"),
        default="beginning",
        help="where to go on: at the log's beginning (default), as all records in a log that was "
        "created again are new; or at its end, where all that it holds has been counted",
    )
    accept.add_argument("--yes", action="store_true", help="do it")
    accept.set_defaults(run=_accept)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.min_insync_replicas > arguments.replication:
        raise SettingsError(
            f"--min-insync-replicas: {arguments.min_insync_replicas} is above --replication "
            f"{arguments.replication}: no record could be acknowledged"
        )
    return asyncio.run(_create_topic(arguments, settings))


async def _create_topic(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.kafka.topic import DAY_MS, alter_topic, create_topic, obstacles
    differences = await create_topic(
        settings.kafka,
        partitions=arguments.partitions,
        replication=arguments.replication,
        min_insync_replicas=arguments.min_insync_replicas,
        retention_ms=arguments.retention_days * DAY_MS,
    )
    if differences is None:
        print(f"created: {settings.kafka.topic}")
        return 0
    if not differences:
        print(f"exists as asked: {settings.kafka.topic}")
        return 0
    print(f"exists and differs: {settings.kafka.topic}")
    if not arguments.alter:
        for name, found, wanted in differences:
            print(f"    {name}: found {found}, wanted {wanted}")
        print("nothing was changed; repeat with --alter to change it")
        return 1
    async for name, found, wanted in alter_topic(settings.kafka, differences):
        print(f"    {name}: changed from {found} to {wanted}", flush=True)
    kept = obstacles(differences)
    for (name, found, wanted), reason in kept.items():
        print(f"    {name}: found {found}, wanted {wanted}: cannot be changed: {reason}")
    return 1 if kept else 0


def _accept(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_accept_logs(settings, arguments.start, dry_run=not arguments.yes))


async def _accept_logs(
    settings: Settings, start: Literal["beginning", "end"], *, dry_run: bool
) -> int:
    with extra("consumer"):
        from execution_events.operations.accept import UnreadLog, accept_logs
    replaced = unread = 0
    async for log in accept_logs(settings, start, dry_run=dry_run):
        if isinstance(log, UnreadLog):
            unread += 1
            print(f"partition {log.partition}: cannot be compared: {log.error}")
            continue
        replaced += 1
        print(f"partition {log.partition}: {log.difference}")
        print(f"    the log holds {log.begin} to {log.end}; it would go on at {log.offset}")
        if not dry_run:
            print("    accepted")
    if replaced and dry_run:
        print("nothing was changed; repeat with --yes to go on")
        return 1
    if not replaced and not unread:
        print("nothing differs")
    return 1 if unread else 0
