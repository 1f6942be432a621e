"""PostgreSQL's errors that no further attempt mends: at start exit code 2 with what to change."""

import asyncio
import re
from collections.abc import Callable

import pytest

from execution_events.errors import MisconfiguredError, RetryableError
from execution_events.settings import Settings, variable_of
from execution_events.store.connection import translated_errors
from execution_events.store.probe import DatabaseProbe
from execution_events.store.read.events import EventReader
from execution_events.store.read.selection import Selection
from execution_events.store.write.batches import BatchWriter
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE
from tests.support.databases import Database, administrator
from tests.support.processes import COMMAND, environment

URL = variable_of("database_url")


REFUSALS: dict[str, tuple[Callable[[str], str], str]] = {
    "password": (lambda url: url.replace("@", "x@"), f"28P01.*the password of {URL}"),
    "database": (lambda url: f"{url}_other", f"3D000.*correct the database of {URL}"),
    "parameter": (lambda url: f"{url}?color=red", f"42704.*correct {URL}"),
    "value": (lambda url: f"{url}?statement_timeout=red", f"22023.*correct {URL}"),
    "sslmode": (lambda url: f"{url}?sslmode=always", f"{URL}: .*sslmode"),
    "privilege": (lambda url: url.replace("_writer", "_ops"), "42501.*`execution-events migrate`"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("command", ["consumer", "reader", "dead-letters list"])
async def test_a_refused_connection_ends_a_command_with_what_to_change(
    database: Database, settings: Settings, command: str, refusal: str
) -> None:
    change, expected = REFUSALS[refusal]
    env = environment(configured(settings, database_url=change(database.writer)))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *command.split(), env=env, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        _, error = await process.communicate()
    assert process.returncode == 2, error
    [line] = [line for line in error.decode().splitlines() if line.startswith("execution-events:")]
    assert re.search(expected, line)


async def test_a_running_service_survives_a_missing_privilege(database: Database) -> None:
    """It is not ready, and says what to change."""
    async with (
        BatchWriter(database.writer, "topic") as writer,
        EventReader.open(database.reader) as lists,
        DatabaseProbe(database.reader, writes=False) as probe,
        administrator(database.owner) as owner,
    ):
        await probe.check()
        await writer.begin_partition(0, 0, "cluster")
        await owner.execute(
            "REVOKE SELECT ON ALL TABLES IN SCHEMA execution_events"
            " FROM execution_events_reader, execution_events_writer"
        )
        with pytest.raises(MisconfiguredError, match=r"42501.*run `execution-events migrate`"):
            await probe.check()
        with pytest.raises(MisconfiguredError, match="42501"):
            await lists.page("execution-1", Selection(), None, 1)
        with pytest.raises(MisconfiguredError, match="42501"):
            await writer.stored_positions([0])
        await owner.execute(
            "GRANT SELECT ON ALL TABLES IN SCHEMA execution_events"
            " TO execution_events_reader, execution_events_writer"
        )
        await probe.check()
        assert (await lists.page("execution-1", Selection(), None, 1)).bodies == []
        assert await writer.stored_positions([0])


def test_a_timeout_is_named() -> None:
    with (
        pytest.raises(RetryableError, match=r"^PostgreSQL at h:1 cannot be reached: timeout$"),
        translated_errors("h:1"),
    ):
        raise TimeoutError
