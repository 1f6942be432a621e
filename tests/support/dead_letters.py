"""Dead letters of a database, and the commands on them."""

from collections.abc import Callable, Coroutine
from typing import Any

from execution_events.store.write.dead_letters import DeadLetters, Filter
from tests.support.configuration import configured
from tests.support.databases import Database
from tests.support.processes import environment, run_cli

Run = Callable[..., Coroutine[Any, Any, str]]
"""Runs a `dead-letters` command, checks its exit code, and returns its standard output."""


async def ids(letters: DeadLetters, **conditions: Any) -> list[int]:
    """Return the numbers of the letters that match `conditions`, in order."""
    return [letter.id async for letter in letters.list(Filter(**conditions))]


def runner(database: Database) -> Run:
    """Return a runner of commands with the writer's role, the least privileged one for them."""
    env = environment(configured(database_url=database.writer))

    async def run(*arguments: str, code: int = 0) -> str:
        return await run_cli("dead-letters", *arguments, env=env, code=code)

    return run
