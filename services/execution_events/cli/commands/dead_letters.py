"""`dead-letters`: list, show, replay and discard refused records."""

import argparse
import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from execution_events.cli.arguments import moment, whole_number
from execution_events.cli.extras import extra
from execution_events.cli.progress import Progress
from execution_events.cli.signals import run_until_stopped
from execution_events.errors import ExecutionEventsError, RetryableError
from execution_events.settings import Settings
from execution_events.wire import REASONS, REFUSED_BY_DATABASE

if TYPE_CHECKING:
    from execution_events.store.write.dead_letters import Content, ListedDeadLetter

_SHOWN_FAILURES = 10
_CONDITIONS = ("ids", "reason", "topic", "partition", "since", "until")

_id = whole_number(1, 2**63 - 1)
_partition = whole_number(0, 2**31 - 1)


def add_commands(commands: Any) -> None:
    """Add the commands to the command line."""
    letters = commands.add_parser(
        "dead-letters", help="list, show, replay or discard refused records"
    )
    subcommands = letters.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = subcommands.add_parser(
        "list",
        help="list dead letters, oldest first",
        description="List refused records, oldest first, each with its reason. Bytes that are not "
        "UTF-8 are shown as \\x..; keys and values are cut after 256 bytes.",
    )
    _add_conditions(listing)
    listing.add_argument(
        "--state",
        choices=("open", "retried", "discarded", "all"),
        default="open",
        help="state of the dead letters (default: open, neither retried nor discarded)",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object per line")
    listing.set_defaults(run=_list)

    show = subcommands.add_parser(
        "show",
        help="show one dead letter in full",
        description="Show one dead letter in full: the record with its headers and value, the "
        "reason it was refused, and its state.",
    )
    show.add_argument(
        "id", type=_id, metavar="ID", help="number of the dead letter, the first column of `list`"
    )
    form = show.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print one JSON object, with bytes also in base64"
    )
    form.add_argument("--raw", action="store_true", help="print only the bytes of the value")
    show.set_defaults(run=_show)

    retry = subcommands.add_parser(
        "retry",
        help="replay open dead letters once their cause is fixed",
        description="Replay open dead letters, each exactly once and in its own transaction, as if "
        "it came last in its partition. One that is refused again stays open. Exits 1 if any could "
        "not be retried.",
    )
    discard = subcommands.add_parser(
        "discard",
        help="discard open dead letters",
        description="Discard open dead letters: they are never counted. `list --state discarded` "
        "shows them until `prune --dead-letters` deletes them.",
    )
    for command, verb in ((retry, "retry"), (discard, "discard")):
        _add_conditions(command)
        command.add_argument("--all", action="store_true", help="all open dead letters")
        command.set_defaults(run=_close, verb=verb, usage_error=command.error)


def _add_conditions(command: argparse.ArgumentParser) -> None:
    command.add_argument("ids", nargs="*", type=_id, metavar="ID", help="only these dead letters")
    command.add_argument(
        "--reason",
        choices=sorted(REASONS | {REFUSED_BY_DATABASE}),
        metavar="REASON",
        help="first or last refused for this reason: %(choices)s",
    )
    command.add_argument("--topic", metavar="TOPIC", help="only this topic")
    command.add_argument("--partition", type=_partition, metavar="N", help="only this partition")
    command.add_argument(
        "--since", type=moment, metavar="TIME", help="refused at this RFC 3339 time or later"
    )
    command.add_argument(
        "--until", type=moment, metavar="TIME", help="refused before this RFC 3339 time"
    )


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
        from execution_events.cli.dead_letter_format import json_line, line
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
        from execution_events.cli.dead_letter_format import TRUNCATED, json_record, paragraphs
    letter, content = asyncio.run(_find(settings, arguments.id))
    if arguments.json:
        print(json_record(letter, content))
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
    raise ExecutionEventsError(f"dead letter {number} does not exist")


def _close(arguments: argparse.Namespace, settings: Settings) -> int:
    conditions = _conditions(arguments)
    if arguments.all == bool(conditions):
        arguments.usage_error("give IDs, options that select dead letters, or --all")
    return run_until_stopped(
        lambda stop: _close_letters(settings, conditions, arguments.verb, stop)
    )


async def _close_letters(
    settings: Settings, conditions: dict[str, Any], verb: str, stop: asyncio.Event
) -> int:
    with extra("consumer"):
        from execution_events.cli.dead_letter_format import TRUNCATED
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
                    failures.add(number, f"is already {state}" if state else "does not exist")
        which = Filter(**conditions, state=State.OPEN)
        # Records refused from now on wait for the next run, so that this one ends.
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
                f"{error}; {ended} dead letters stay {ended}: repeat the command for the rest"
            ) from error
        finally:
            progress.end()
            failures.print()
            print(_summary(ended, results))
    if stop.is_set() and results.total() < total:
        raise ExecutionEventsError(f"interrupted with {total - results.total()} dead letters left")
    return 1 if failures.number else 0


def _summary(ended: str, results: "Counter[Any]") -> str:
    others = {
        "refused again": results["refused"],
        "truncated": results["truncated"],
        "closed by another command": results["closed"],
    }
    counts = [f"{ended}: {results['done']}", *(f"{k}: {n}" for k, n in others.items() if n)]
    return ", ".join(counts)


class _Failures:
    """The dead letters that could not be closed; the first few are printed."""

    def __init__(self) -> None:
        self.number = 0
        self._lines: list[str] = []

    def add(self, letter: int, problem: str) -> None:
        self.number += 1
        if self.number <= _SHOWN_FAILURES:
            self._lines.append(f"dead letter {letter}: {problem}")

    def print(self) -> None:
        for line in self._lines:
            print(line)
        if self.number > _SHOWN_FAILURES:
            print(f"and {self.number - _SHOWN_FAILURES} more")
