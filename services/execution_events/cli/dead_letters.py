"""`dead-letters`: the records that could not be stored."""

import argparse
import asyncio
from datetime import datetime
from typing import Any

import msgspec

from execution_events.cli.extras import extra
from execution_events.settings import Settings


class _Line(msgspec.Struct, rename="camel"):
    id: int
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value_bytes: int | None
    value_begin: str | None
    reason: str
    detail: str
    refused_at: datetime


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    letters = commands.add_parser("dead-letters", help="the records that could not be stored")
    listing = letters.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "list",
        help="list them, oldest first, each with its reason",
        description="List the records that could not be stored, oldest first. Bytes that are not "
        "UTF-8 are shown as \\x..; of a value the first 256 bytes are shown.",
    )
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=_list)


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(_print_letters(settings, as_json=arguments.json))


async def _print_letters(settings: Settings, *, as_json: bool) -> int:
    with extra("consumer"):
        from execution_events.store.database import connect
        from execution_events.store.dead_letters import list_dead_letters
    number = 0
    async with connect(settings.require_database_url(), "execution-events cli") as connection:
        async for letter in list_dead_letters(connection):
            number += 1
            line = _Line(
                id=letter.id,
                topic=letter.topic,
                partition=letter.partition,
                offset=letter.offset,
                timestamp=letter.record_timestamp,
                key=_text(letter.key),
                value_bytes=letter.value_bytes,
                value_begin=_text(letter.value_begin),
                reason=letter.reason,
                detail=letter.detail,
                refused_at=letter.refused_at,
            )
            if as_json:
                print(msgspec.json.encode(line).decode())
            else:
                print(
                    f"{line.id:>6}  {line.refused_at:%Y-%m-%d %H:%M:%S}  "
                    f"{line.topic}/{line.partition}@{line.offset}  {line.reason}: {line.detail}"
                )
    if not number and not as_json:
        print("no dead letters")
    return 0


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="backslashreplace")
