"""`topic`: the topic as the guarantees need it, and what to do where it was replaced."""

import argparse
import asyncio
from typing import Any

from execution_events.cli.extras import extra
from execution_events.cli.numbers import positive
from execution_events.errors import RetryableError, SettingsError
from execution_events.settings import Settings

DEFAULT_PARTITIONS = 6
DEFAULT_RETENTION_DAYS = 30


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
        dest="begin",
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
        from execution_events.consumer.topic import DAY_MS, alter_topic, create_topic, obstacles
    differences = await create_topic(
        settings,
        partitions=arguments.partitions,
        replication=arguments.replication,
        min_insync_replicas=arguments.min_insync_replicas,
        retention_ms=arguments.retention_days * DAY_MS,
    )
    if differences is None:
        print(f"created: {settings.topic}")
        return 0
    if not differences:
        print(f"exists as asked: {settings.topic}")
        return 0
    print(f"exists and differs: {settings.topic}")
    if not arguments.alter:
        for name, found, wanted in differences:
            print(f"    {name}: found {found}, wanted {wanted}")
        print("nothing was changed; repeat with --alter to change it")
        return 1
    async for name, found, wanted in alter_topic(settings, differences):
        print(f"    {name}: changed from {found} to {wanted}", flush=True)
    kept = obstacles(differences)
    for (name, found, wanted), reason in kept.items():
        print(f"    {name}: found {found}, wanted {wanted}: cannot be changed: {reason}")
    return 1 if kept else 0


def _accept(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_accept_logs(settings, arguments.begin, accepted=arguments.yes))


async def _accept_logs(settings: Settings, begin: str, *, accepted: bool) -> int:
    with extra("consumer"):
        from execution_events.consumer.codecs import Decoders
        from execution_events.consumer.log import LogState, difference, read_log
        from execution_events.consumer.topic import check_topic
        from execution_events.store.batches import BatchWriter, Move
    partitions = await check_topic(settings)
    states: dict[int, LogState | RetryableError] = {}
    failed = False
    async with BatchWriter(settings.require_database_url(), settings.topic) as writer:
        stored = await writer.stored_positions(partitions)
        decoders = Decoders(settings.kafka_batch_limit).install()
        await read_log(settings, decoders, stored, {}, states.__setitem__)
        differences = 0
        for number, position in sorted(stored.items()):
            state = states[number]
            if isinstance(state, RetryableError):
                print(f"partition {number}: cannot be compared: {state}")
                failed = True
                continue
            if (reason := difference(position, state)) is None:
                continue
            differences += 1
            offset = state.begin if begin == "beginning" else state.end
            print(f"partition {number}: {reason}")
            print(f"    the log holds {state.begin} to {state.end}; it would go on at {offset}")
            if accepted:
                move = Move(position.next_offset, offset, position.epoch)
                await writer.accept_log(number, move, state.cluster_id)
                print("    accepted")
    if differences and not accepted:
        print("nothing was changed; repeat with --yes to go on")
        return 1
    if not differences and not failed:
        print("nothing differs")
    return 1 if failed else 0
