"""`migrate` for owners of all kinds, on a server of its own: roles belong to the whole server."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import asyncpg
import pytest

from execution_events.embedded import EmbeddedPostgres
from execution_events.errors import MisconfiguredError
from execution_events.operations.migration import check_database, migrate_database
from execution_events.settings import DatabaseSettings
from execution_events.store.schema.provision import provision_database
from tests.support import postgresql
from tests.support.configuration import configured
from tests.support.databases import SERVICE_ROLES, administrator
from tests.support.processes import environment, run_cli
from tests.support.servers import Servers, data_directory

PASSWORDS = {
    "owner": "0wner",
    "writer": "wr1ter",
    "reader": "l\u00e9cteur\u00a0\u2168",
    "ops": "\u0221 \u0627a",
}
"""PostgreSQL prepares the third by SASLprep, and takes the fourth as it is."""


class Server(NamedTuple):
    """A server that logs each statement."""

    postgres: EmbeddedPostgres
    lines: list[str]

    def settings(self, owner: str, **passwords: Any) -> DatabaseSettings:
        """Return the settings of `migrate` for the database that has its owner's name."""
        url = self.postgres.dsn(owner, owner, PASSWORDS["owner"])
        return configured(database_url=url, **passwords).database

    async def create(self, owner: str, attributes: str = "") -> None:
        """Create a login and a database of that name, as an administrator does."""
        async with administrator(self.postgres.dsn()) as connection:
            await connection.execute(
                f"CREATE ROLE {owner} LOGIN {attributes} PASSWORD '{PASSWORDS['owner']}'"
            )
            await connection.execute(f"CREATE DATABASE {owner} OWNER {owner}")

    async def run(self, database: str, statements: Iterable[str]) -> None:
        """Run SQL that `migrate` printed, as an administrator."""
        async with administrator(self.postgres.dsn(database)) as connection:
            for statement in statements:
                await connection.execute(statement)


@pytest.fixture
async def server(servers: Servers) -> AsyncIterator[Server]:
    lines: list[str] = []
    async with (
        data_directory() as directory,
        EmbeddedPostgres(
            directory,
            settings={"fsync": "off", "log_statement": "all"},
            packages=await postgresql.packages(),
            on_line=lines.append,
        ) as postgres,
    ):
        yield Server(postgres, lines)


async def left(settings: DatabaseSettings) -> list[str]:
    """Return what is left for an administrator; nothing else may differ."""
    check = await check_database(settings)
    assert (check.missing, check.differences.own) == ([], [])
    return check.differences.administrator


async def test_an_owner_without_createrole_gets_the_sql_to_run(server: Server) -> None:
    await server.create("plain")
    settings = server.settings("plain")
    with pytest.raises(MisconfiguredError) as refused:
        await migrate_database(settings)
    script = [line.strip(" ;") for line in str(refused.value).splitlines()[1:]]
    assert script[:3] == [f"CREATE ROLE {role}" for role in sorted(SERVICE_ROLES)]

    await server.run("plain", script)
    assert (await migrate_database(settings)).administrator == []
    assert await left(settings) == []


async def test_a_second_owner_on_one_server_works_or_gets_the_sql_to_run(server: Server) -> None:
    for owner in ("one", "two"):
        await server.create(owner, "CREATEROLE")
        outcome = await migrate_database(server.settings(owner))
        assert outcome.applied
        await server.run(owner, outcome.administrator)
    assert await left(server.settings("one")) == await left(server.settings("two")) == []


async def test_an_owner_that_may_not_set_a_password_gets_the_commands(server: Server) -> None:
    await server.create("plain")
    await server.run("plain", [f"CREATE ROLE {role}" for role in SERVICE_ROLES])
    settings = server.settings("plain", reader_password=PASSWORDS["reader"])
    with pytest.raises(MisconfiguredError, match=r"\\password execution_events_reader") as refused:
        await migrate_database(settings)
    assert PASSWORDS["reader"] not in str(refused.value)
    assert await left(settings) != []


async def test_a_database_without_the_schema_public_is_migrated(server: Server) -> None:
    await server.create("plain", "CREATEROLE")
    await server.run("plain", ["DROP SCHEMA public"])
    assert (await migrate_database(server.settings("plain"))).applied


async def test_what_only_a_superuser_can_revoke_is_printed_as_sql(server: Server) -> None:
    await server.create("plain", "CREATEROLE")
    env = environment(configured(database_url=server.settings("plain").url))
    for arguments in (["migrate"], ["migrate", "--check"]):
        output = await run_cli(*arguments, env=env)
        [statement] = [line.strip(" ;") for line in output.splitlines() if "REVOKE" in line]
        assert "lo_create(oid)" in statement
        assert "pg_logical_emit_message(boolean,text,text" in statement
        assert "pg_advisory_lock(bigint)" in statement
    await server.run("plain", [statement])
    assert await run_cli("migrate", "--check", env=env) == "up to date\n"


async def test_a_login_without_the_limits_of_operators_is_reported(server: Server) -> None:
    await provision_database(server.postgres.dsn(), "mine", "mine", PASSWORDS["owner"])
    settings = server.settings("mine")
    assert (await migrate_database(settings)).administrator == []
    await server.run(
        "mine",
        [
            "CREATE ROLE grafana LOGIN",
            "GRANT execution_events_ops TO grafana",
            "ALTER ROLE grafana SET statement_timeout = '5s'",
        ],
    )
    expected = [
        "ALTER ROLE grafana IN DATABASE mine SET idle_in_transaction_session_timeout = '30s'",
        "ALTER ROLE grafana IN DATABASE mine SET jit = 'off'",
        "ALTER ROLE grafana IN DATABASE mine SET max_parallel_workers_per_gather = '0'",
        "ALTER ROLE grafana CONNECTION LIMIT 20",
    ]
    assert await left(settings) == expected
    assert (await migrate_database(settings)).administrator == expected
    await server.run("mine", expected)
    assert await left(settings) == []


async def test_the_check_compares_roles_and_privileges(server: Server) -> None:
    await provision_database(server.postgres.dsn(), "mine", "mine", PASSWORDS["owner"])
    settings = server.settings("mine")
    await migrate_database(settings)
    await server.run(
        "mine",
        [
            "REVOKE SELECT ON execution_events.event FROM execution_events_reader",
            "GRANT INSERT ON execution_events.event TO PUBLIC",
            "ALTER ROLE execution_events_ops IN DATABASE mine SET statement_timeout = 0",
        ],
    )
    env = environment(configured(database_url=settings.url))
    for _ in range(2):
        output = await run_cli("migrate", "--check", env=env, code=1)
        assert output.splitlines() == [
            "to run: ALTER ROLE execution_events_ops IN DATABASE mine"
            " SET statement_timeout = '30s'",
            "missing: SELECT on execution_events.event for execution_events_reader",
            "to revoke: INSERT on execution_events.event for PUBLIC",
            "run `execution-events migrate`",
        ]
    assert await run_cli("migrate", env=env) == "up to date\n"
    assert await run_cli("migrate", "--check", env=env) == "up to date\n"


async def test_passwords_are_never_sent_as_text(server: Server) -> None:
    await provision_database(server.postgres.dsn(), "mine", "mine", PASSWORDS["owner"])
    given = {f"{role}_password": PASSWORDS[role] for role in ("writer", "reader", "ops")}
    await migrate_database(server.settings("mine", **given))
    for role in ("writer", "reader", "ops"):
        url = server.postgres.dsn("mine", f"execution_events_{role}", PASSWORDS[role])
        async with administrator(url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.postgres.dsn("mine", f"execution_events_{role}", "other"))
    log = "\n".join(server.lines)
    assert log.count("SCRAM-SHA-256$4096:") >= 4
    assert not [password for password in PASSWORDS.values() if password in log]
