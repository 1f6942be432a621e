"""`dead-letters`: the records that could not be stored, and what to do with them."""

import argparse
import asyncio
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from execution_events.cli.extras import extra
from execution_events.cli.progress import Progress
from execution_events.cli.services import run_until_stopped
from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.settings import Settings
from execution_events.wire import REASONS, REFUSED_BY_DATABASE

if TYPE_CHECKING:
    from execution_events.store.write.dead_letters import Content, ListedDeadLetter

_SHOWN_FAILURES = 10
_CONDITIONS = ("ids", "reason", "topic", "partition", "since", "until")


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    letters = commands.add_parser("dead-letters", help="the records that could not be stored")
    subcommands = letters.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = subcommands.add_parser(
        "list",
        help="list them, oldest first, each with its reason",
        description="List the records that could not be stored, oldest first. Bytes that are not "
        "UTF-8 are shown as \\x..; of a key and of a value the first 256 bytes are shown.",
    )
    _add_conditions(listing)
    listing.add_argument(
        "--state",
        choices=("open", "retried", "discarded", "all"),
        default="open",
        help="what became of them (default: open, which is nothing yet)",
    )
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=_list)

    show = subcommands.add_parser(
        "show",
        help="show all that is kept of one",
        description="Show all that is kept of one: the record, its headers, its whole value, why "
        "it was refused and what became of it.",
    )
    show.add_argument("id", type=_id, metavar="ID", help="the number that list shows first")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object, bytes also in base64")
    form.add_argument("--raw", action="store_true", help="the bytes of the value and nothing else")
    show.set_defaults(run=_show)

    retry = subcommands.add_parser(
        "retry",
        help="count them after all, once their cause is mended",
        description="Count open dead letters after all, each exactly once and in a transaction of "
        "its own, as if it came last in its partition. One that is refused again stays open. "
        "Exits with 1 where some could not be retried.",
    )
    discard = subcommands.add_parser(
        "discard",
        help="close them without counting them",
        description="Close open dead letters without counting them. They are kept, and can be "
        "listed with --state discarded, until prune --dead-letters removes them.",
    )
    for command, verb in ((retry, "retry"), (discard, "discard")):
        _add_conditions(command)
        command.add_argument("--all", action="store_true", help="all that are open")
        command.set_defaults(run=_close, verb=verb, usage_error=command.error)


def _add_conditions(command: argparse.ArgumentParser) -> None:
    command.add_argument("ids", nargs="*", type=_id, metavar="ID", help="these and no other")
    command.add_argument(
        "--reason",
        choices=sorted(REASONS | {REFUSED_BY_DATABASE}),
        metavar="REASON",
        help="refused for it, at first or when last retried: %(choices)s",
    )
    command.add_argument("--topic", metavar="TOPIC", help="of this topic")
    command.add_argument("--partition", type=_partition, metavar="N", help="of this partition")
    command.add_argument(
        "--since", type=_moment, metavar="TIME", help="refused then or later, in RFC 3339"
    )
    command.add_argument("--until", type=_moment, metavar="TIME", help="refused before then")


def _id(text: str) -> int:
    return _whole_number(text, 1, 2**63 - 1)


def _partition(text: str) -> int:
    return _whole_number(text, 0, 2**31 - 1)


def _whole_number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most}, not {text!r}"
        )
    return int(text)


def _moment(text: str) -> datetime:
    try:
        moment = msgspec.convert(text, datetime)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected a time like 2026-01-31T23:59:59Z, not {text!r}")


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in _CONDITIONS}
    return {name: value for name, value in given.items() if value not in (None, [])}


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    return asyncio.run(
        _print_letters(settings, _conditions(arguments), arguments.state, as_json=arguments.json)
    )


async def _print_letters(
    settings: Settings, conditions: dict[str, Any], state: str, *, as_json: bool
) -> int:
    with extra("consumer"):
        from execution_events.cli.letter_view import json_line, line
        from execution_events.store.write.dead_letters import DeadLetters, Filter, State
    which = Filter(**conditions, state=None if state == "all" else State(state))
    number = 0
    async with DeadLetters.open(settings.database.require_url()) as letters:
        async for letter in letters.list(which):
            number += 1
            print(json_line(letter) if as_json else line(letter))
    if not number and not as_json:
        print("no dead letters")
    return 0


def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    with extra("consumer"):
        from execution_events.cli.letter_view import TRUNCATED, json_whole, paragraphs
    letter, content = asyncio.run(_find(settings, arguments.id))
    if arguments.json:
        print(json_whole(letter, content))
    elif not arguments.raw:
        print("\n".join(paragraphs(letter, content)))
    elif content.value is None:
        raise ExecutionEventsError(f"dead letter {letter.id} has no value")
    else:
        sys.stdout.buffer.write(content.value)
        if letter.truncated:
            print(f"execution-events: dead letter {letter.id}: {TRUNCATED}", file=sys.stderr)
    return 0


async def _find(settings: Settings, number: int) -> tuple["ListedDeadLetter", "Content"]:
    with extra("consumer"):
        from execution_events.store.write.dead_letters import DeadLetters, Filter
    async with DeadLetters.open(settings.database.require_url()) as letters:
        content = await letters.content(number)
        async for letter in letters.list(Filter([number])):
            if content is not None:
                return letter, content
    raise ExecutionEventsError(f"there is no dead letter {number}")


def _close(arguments: argparse.Namespace, settings: Settings) -> int:
    conditions = _conditions(arguments)
    if arguments.all == bool(conditions):
        arguments.usage_error("name dead letters by ID, choose them by options, or give --all")
    return run_until_stopped(
        lambda stop: _close_letters(settings, conditions, arguments.verb, stop)
    )


async def _close_letters(
    settings: Settings, conditions: dict[str, Any], verb: str, stop: asyncio.Event
) -> int:
    with extra("consumer"):
        from execution_events.cli.letter_view import TRUNCATED
        from execution_events.store.write.dead_letters import DeadLetters, Filter, Result, State
    ended = "retried" if verb == "retry" else "discarded"
    results: Counter[Result] = Counter()
    async with DeadLetters.open(settings.database.require_url()) as letters:
        close = letters.retry if verb == "retry" else letters.discard
        failures = _Failures()
        ids = conditions.get("ids", [])
        if ids:
            states = {letter.id: letter.state async for letter in letters.list(Filter(ids))}
            for number in ids:
                if (state := states.get(number)) != State.OPEN:
                    failures.add(number, f"is {state} already" if state else "is not there")
        which = Filter(**conditions, state=State.OPEN)
        # What is refused from now on is left for the next time, so that this one has an end.
        total, last = await letters.count(which)
        progress = Progress(total)
        try:
            async for letter in letters.list(which):
                if letter.id > last or stop.is_set():
                    break
                outcome = await close(letter.id)
                results[outcome.result] += 1
                progress.show(results.total())
                if outcome.refusal is not None:
                    failures.add(letter.id, "was refused again: {}: {}".format(*outcome.refusal))
                elif outcome.result is Result.TRUNCATED:
                    failures.add(letter.id, TRUNCATED)
        except RetryableError as error:
            raise ExecutionEventsError(
                f"{error}; what was {ended} stays so, give the same command again for the others"
            ) from error
        finally:
            progress.end()
            failures.print()
            print(_summary(ended, results))
    if stop.is_set() and results.total() < total:
        raise ExecutionEventsError(f"interrupted with {total - results.total()} left")
    return 1 if failures.number else 0


def _summary(ended: str, results: "Counter[Any]") -> str:
    others = {
        "refused again": results["refused"],
        "truncated": results["truncated"],
        "closed by another meanwhile": results["closed"],
    }
    counts = [f"{ended}: {results['done']}", *(f"{k}: {n}" for k, n in others.items() if n)]
    return ", ".join(counts)


class _Failures:
    """Letters that an operator must look at; the first few are printed."""

    def __init__(self) -> None:
        self.number = 0
        self._lines: list[str] = []

    def add(self, letter: int, what: str) -> None:
        self.number += 1
        if self.number <= _SHOWN_FAILURES:
            self._lines.append(f"dead letter {letter}: {what}")

    def print(self) -> None:
        for line in self._lines:
            print(line)
        if self.number > _SHOWN_FAILURES:
            print(f"and {self.number - _SHOWN_FAILURES} more")
