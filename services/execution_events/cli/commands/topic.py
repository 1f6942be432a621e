"""`topic`: create the topic, or accept a replaced log."""

import argparse
import asyncio
from typing import Any, Literal

from execution_events.cli.arguments import whole_number
from execution_events.cli.extras import extra
from execution_events.cli.report import Report
from execution_events.cli.waiting import add_wait, until_reached
from execution_events.errors import SettingsError
from execution_events.settings import TOPIC_PARTITIONS, TOPIC_RETENTION_DAYS, Settings

_REPLICAS_MAX = 2**15 - 1
"""The maximum of Kafka's protocol."""


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    topic = commands.add_parser("topic", help="create the topic, or accept a replaced log")
    subcommands = topic.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = subcommands.add_parser(
        "create",
        help="create the topic; compare or alter an existing one",
        description="Create the topic. An acknowledged record survives the loss of one broker, and "
        "is retained by the time at which Kafka received it (LogAppendTime). If the topic exists, "
        "list how it differs and exit 1 if it does.",
    )
    create.add_argument(
        "--partitions",
        type=whole_number(1, 100_000),
        default=TOPIC_PARTITIONS,
        metavar="N",
        help="number of partitions, the maximum number of active consumers (default: %(default)s)",
    )
    create.add_argument(
        "--replication",
        type=whole_number(1, _REPLICAS_MAX),
        default=3,
        metavar="N",
        help="replicas of each partition (default: %(default)s)",
    )
    create.add_argument(
        "--min-insync-replicas",
        type=whole_number(1, _REPLICAS_MAX),
        default=2,
        metavar="N",
        help="replicas that must have a record before it is acknowledged (default: %(default)s)",
    )
    create.add_argument(
        "--retention-days",
        type=whole_number(1, 100_000),
        default=TOPIC_RETENTION_DAYS,
        metavar="DAYS",
        help="days that records are kept, longer than any outage of the consumers "
        "(default: %(default)s)",
    )
    create.add_argument(
        "--alter",
        action="store_true",
        help="change what differs, except for the replication factor and a smaller number of "
        "partitions; after adding partitions, later records of an execution may go to another "
        "partition, and of two records with the same lastTimestamp the one stored last wins "
        "(counts stay exact)",
    )
    add_wait(create, "Kafka")
    create.set_defaults(run=_create)
    accept = subcommands.add_parser(
        "accept",
        help="continue with a log that was re-created, truncated or has lost records",
        description="List the partitions whose log was replaced; with --yes, accept the new log. "
        "Consumers may be running: halted ones continue within 15 seconds. Counts stay as they "
        "are, and records with a known ce_source and ce_sequence are not counted again.",
    )
    accept.add_argument(
        "--from",
        dest="start",
        choices=("beginning", "end"),
        default="beginning",
        help="offset to continue at: the beginning of the log (default), where all its records are "
        "new, as in a re-created topic; or its end, where all were counted before",
    )
    accept.add_argument("--yes", action="store_true", help="apply the change (default: dry run)")
    accept.set_defaults(run=_accept)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.min_insync_replicas > arguments.replication:
        raise SettingsError(
            f"--min-insync-replicas: expected at most --replication, {arguments.replication}, "
            f"not {arguments.min_insync_replicas}: no record could be acknowledged"
        )
    with Report() as report:
        return asyncio.run(_create_topic(arguments, settings, report))


async def _create_topic(arguments: argparse.Namespace, settings: Settings, report: Report) -> int:
    with extra("consumer"):
        from execution_events.kafka.topic import DAY_MS, alter_topic, create_topic, obstacles
    topic = settings.kafka.topic
    report.remedy = "the topic may have been created or changed: repeat the command to compare it"
    differences = await until_reached(
        lambda: create_topic(
            settings.kafka,
            partitions=arguments.partitions,
            replication=arguments.replication,
            min_insync_replicas=arguments.min_insync_replicas,
            retention_ms=arguments.retention_days * DAY_MS,
        ),
        arguments.wait,
    )
    if not differences:
        report.done = f"{'created' if differences is None else 'exists and matches'}: {topic}"
        return 0
    done = [f"exists and differs: {topic}"]
    if not arguments.alter:
        done += [
            f"    {name}: is {found}, expected {wanted}" for name, found, wanted in differences
        ]
        report.done = "\n".join([*done, "nothing was changed; to change it, add --alter"])
        return 1
    async for name, found, wanted in alter_topic(settings.kafka, differences):
        done.append(f"    {name}: changed from {found} to {wanted}")
        report.done = "\n".join(done)
    kept = obstacles(differences)
    for (name, found, wanted), reason in kept.items():
        done.append(f"    {name}: is {found}, expected {wanted}, cannot be changed: {reason}")
    report.done = "\n".join(done)
    return 1 if kept else 0


def _accept(arguments: argparse.Namespace, settings: Settings) -> int:
    with Report() as report:
        return asyncio.run(
            _accept_logs(settings, arguments.start, report, dry_run=not arguments.yes)
        )


async def _accept_logs(
    settings: Settings, start: Literal["beginning", "end"], report: Report, *, dry_run: bool
) -> int:
    with extra("consumer"):
        from execution_events.operations.accept import UnreadLog, accept_logs
    replaced = unread = 0
    done: list[str] = []
    report.remedy = "accepted logs stay accepted; repeat the command for the rest"
    async for log in accept_logs(settings, start, dry_run=dry_run):
        if isinstance(log, UnreadLog):
            unread += 1
            done.append(f"partition {log.partition}: cannot be compared: {log.error}")
        else:
            replaced += 1
            done += [
                f"partition {log.partition}: {log.difference}",
                f"    the log has offsets {log.begin} to {log.end}; continues at {log.offset}",
                *(() if dry_run else ("    accepted",)),
            ]
        report.done = "\n".join(done)
    if replaced and dry_run:
        done.append("nothing was changed; to accept the log, add --yes")
    elif not replaced and not unread:
        done.append("nothing differs")
    report.done = "\n".join(done)
    return 1 if unread or (replaced and dry_run) else 0
