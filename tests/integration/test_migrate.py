"""Migrations are applied once, and no service runs on another schema version."""

import asyncio
import re
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest

from execution_events.errors import HaltError
from execution_events.store import schema
from execution_events.store.connection import connect, fetch_one
from execution_events.store.read.events import EventReader
from execution_events.store.schema import migrate
from execution_events.store.schema.migrate import Migration, migrations, pending, require_compatible
from execution_events.store.write.batches import BatchWriter
from tests.support import databases
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database, migrate_as_owner
from tests.support.processes import environment, run_cli
from tests.support.records import batch, log, occurrence
from tests.support.servers import Servers

ALL = [migration.name for migration in migrations()]

RELEASED: dict[str, str] = {}
"""The digest of each migration. A release adds its migrations; existing lines never change."""


async def applied(database: Database) -> list[asyncpg.Record]:
    async with databases.administrator(database.owner) as connection:
        rows: list[asyncpg.Record] = await connection.fetch(
            "SELECT version, name, applied_at FROM execution_events.schema_version ORDER BY version"
        )
    return rows


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    directory = files(schema) / "migrations"
    assert sorted(file.name for file in directory.iterdir()) == [
        f"{number:04}_{migration.name}.sql" for number, migration in enumerate(migrations(), 1)
    ]
    assert [migration.version for migration in migrations()] == list(range(1, len(ALL) + 1))


def test_every_version_has_three_numbers() -> None:
    versions = [migrate.program_version(), *(one.compatible_from for one in migrations())]
    assert [v for v in versions if not re.match(r"\d+\.\d+\.\d+(?!\.)", v)] == []


@pytest.mark.parametrize(
    ("version", "compatible_from", "is_allowed"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.10.0", "0.9.1", True),
        ("1.0.0rc1", "1.0.0", True),
        ("0.9.10", "0.10.0", False),
        ("0.9.9", "0.9.10", False),
    ],
)
def test_versions_are_compared_by_number(
    monkeypatch: pytest.MonkeyPatch, version: str, compatible_from: str, is_allowed: bool
) -> None:
    monkeypatch.setattr(migrate, "program_version", lambda: version)
    with nullcontext() if is_allowed else pytest.raises(HaltError, match=f"this is {version}"):
        migrate.require_version(compatible_from)


def test_a_migration_is_as_compatible_as_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = tmp_path / "migrations"
    directory.mkdir()
    for name, sql in (
        ("0001_one", "-- compatible_from: 0.1.0\n"),
        ("0002_two", "SELECT 1"),
        ("0003_three", "SELECT 1;\n-- compatible_from: 0.3.0\nSELECT 1"),
        ("0004_four", ""),
    ):
        (directory / f"{name}.sql").write_text(sql)
    monkeypatch.setattr(migrate, "files", lambda _: tmp_path)
    assert [one.compatible_from for one in migrations()] == ["0.1.0", "0.1.0", "0.3.0", "0.3.0"]


def test_a_released_migration_never_changes() -> None:
    digests = {f"{one.version:04}_{one.name}.sql": one.digest for one in migrations()}
    assert digests.items() >= RELEASED.items()


async def test_an_empty_database_becomes_current(servers: Servers) -> None:
    async with databases.empty(servers.administrator_url) as database:
        async with connect(database.owner, "tests") as connection:
            assert await pending(connection) == migrations()
            assert await migrate_as_owner(database) == ALL
            assert await pending(connection) == []
            await require_compatible(connection)
        assert [row["name"] for row in await applied(database)] == ALL


async def test_a_second_migrate_applies_nothing(database: Database) -> None:
    before = await applied(database)
    assert await migrate_as_owner(database) == []
    assert await applied(database) == before


async def test_concurrent_migrates_apply_once(servers: Servers) -> None:
    async with databases.empty(servers.administrator_url) as database:
        both = await asyncio.gather(migrate_as_owner(database), migrate_as_owner(database))
        assert sorted(both) == [[], ALL]


async def test_databases_of_one_server_can_be_migrated_concurrently(servers: Servers) -> None:
    """Roles and their passwords belong to the whole server."""
    async with (
        databases.empty(servers.administrator_url) as one,
        databases.empty(servers.administrator_url) as other,
    ):
        for expected in (ALL, [], []):
            both = await asyncio.gather(migrate_as_owner(one), migrate_as_owner(other))
            assert list(both) == [expected, expected]


async def test_a_migration_and_its_version_are_one_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Migration(len(ALL) + 1, "good", "CREATE TABLE good ()", "0.1.0")
    # Its SQL succeeds, but its version exists.
    sql = f"CREATE TABLE bad (); INSERT INTO schema_version VALUES ({len(ALL) + 2}, '', '', '')"
    bad = Migration(len(ALL) + 2, "bad", sql, "0.1.0")
    monkeypatch.setattr(migrate, "migrations", lambda: [*migrations(), good, bad])

    with pytest.raises(HaltError, match="23505"):
        await migrate_as_owner(database)

    assert [row["name"] for row in await applied(database)] == [*ALL, "good"]
    async with databases.administrator(database.owner) as connection:
        tables = "SELECT to_regclass('execution_events.good'), to_regclass('execution_events.bad')"
        assert list(await fetch_one(connection, tables)) == ["execution_events.good", None]


@pytest.mark.parametrize(
    ("change", "command"),
    [
        ("DELETE FROM schema_version", "1 of 1 migrations .* run `execution-events migrate`"),
        ("DROP TABLE schema_version", "run `execution-events migrate`"),
        (
            "INSERT INTO schema_version VALUES (2, 'later', '', '9999.1')",
            r"requires execution-events 9999\.1 or newer, this is .*execution-events>=9999\.1'",
        ),
        ("UPDATE schema_version SET digest = 'another'", "never released .*empty database"),
        (
            "ALTER TABLE schema_version DROP COLUMN digest, DROP COLUMN compatible_from",
            "never released .*empty database",
        ),
    ],
    ids=["older", "without a version", "incompatible", "another", "unreleased"],
)
async def test_no_service_runs_on_another_schema_version(
    database: Database, change: str, command: str
) -> None:
    async with databases.administrator(database.owner) as connection:
        await connection.execute(f"SET search_path = execution_events; {change}")

    async with BatchWriter(database.writer, "topic") as writer:
        with pytest.raises(HaltError, match=command):
            await writer.connect()
    async with EventReader.open(database.reader) as lists:
        with pytest.raises(HaltError, match=command):
            await lists.check()


NEWER = "INSERT INTO schema_version VALUES (2, 'later', '', $1)"


async def test_services_run_on_a_newer_schema_that_is_compatible(
    database: Database, owner: asyncpg.Connection
) -> None:
    await owner.execute("SET search_path = execution_events")
    await owner.execute(NEWER, migrate.program_version())
    async with BatchWriter(database.writer, "topic") as writer:
        await writer.connect()
    async with EventReader.open(database.reader) as lists:
        await lists.check()


async def test_no_batch_is_stored_after_an_incompatible_migration(
    database: Database, writer: BatchWriter, owner: asyncpg.Connection
) -> None:
    await owner.execute("SET search_path = execution_events")
    records = log([occurrence()] * 3)
    await writer.store(batch(records[:1]))
    await owner.execute(NEWER, migrate.program_version())
    await writer.store(batch(records[1:2]))
    await owner.execute(NEWER.replace("2,", "3,"), "9999.1")
    with pytest.raises(HaltError, match=r"requires execution-events 9999\.1"):
        await writer.store(batch(records[2:]))
    offsets = "SELECT max(next_offset) FROM partition_progress"
    row = await fetch_one(owner, f"SELECT ({offsets}), count FROM event")
    assert tuple(row) == (2, 2)


async def test_an_incompatible_migration_waits_for_batches(
    database: Database, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that has begun on the old schema is committed before the new one is visible."""
    sql = "-- compatible_from: 9999.1\nCREATE TABLE later ()"
    later = Migration(len(ALL) + 1, "later", sql, "9999.1")
    monkeypatch.setattr(migrate, "migrations", lambda: [*migrations(), later])
    async with databases.administrator(database.writer) as batch_in_progress:
        transaction = batch_in_progress.transaction()
        await transaction.start()
        await batch_in_progress.execute("UPDATE execution_events.partition_progress SET epoch = 0")
        migrating = asyncio.create_task(migrate_as_owner(database))
        await until_blocked(owner)
        assert not migrating.done()
        await transaction.commit()
    assert await migrating == ["later"]


async def test_statements_are_executed_while_a_migration_waits_for_a_lock(
    database: Database, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Migration(len(ALL) + 1, "later", "LOCK TABLE event", "0.1.0")
    monkeypatch.setattr(migrate, "migrations", lambda: [*migrations(), later])
    async with (
        databases.administrator(database.reader) as holder,
        databases.administrator(database.reader) as other,
    ):
        async with holder.transaction():
            await holder.execute("SELECT FROM execution_events.event")
            migrating = asyncio.create_task(migrate_as_owner(database))
            await until_blocked(owner)
            await other.execute("SELECT FROM execution_events.event", timeout=30)
            assert not migrating.done()
        assert await migrating == ["later"]


async def until_blocked(owner: asyncpg.Connection) -> None:
    """Return once a session of the database waits for another's lock."""

    async def blocked() -> bool:
        waiting = (
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE NOT granted AND datname = current_database()"
        )
        return bool(await owner.fetchval(waiting))

    await until(blocked, "a session is blocked")


async def test_a_newer_schema_is_not_migrated(database: Database) -> None:
    async with databases.administrator(database.owner) as connection:
        await connection.execute(
            "INSERT INTO execution_events.schema_version VALUES (9999, 'x', '', '0.1.0')"
        )
    before = await applied(database)
    with pytest.raises(HaltError, match="upgrade execution-events"):
        await migrate_as_owner(database)
    assert await applied(database) == before


async def test_migrate_gives_a_copied_database_its_privileges(
    servers: Servers, template_database: str
) -> None:
    """A copied database keeps the privileges on its objects, but not those on itself."""
    name = f"{template_database}_copy"
    copy = databases.urls(servers.administrator_url, name)
    privileges = "SELECT datacl::text FROM pg_database WHERE datname = $1"
    async with databases.administrator(servers.administrator_url) as administrator:
        await administrator.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" OWNER "{databases.OWNER}"'
        )
        try:
            assert await administrator.fetchval(privileges, name) is None
            assert await migrate_as_owner(copy) == []
            assert await administrator.fetchval(privileges, name) == await administrator.fetchval(
                privileges, template_database
            )
        finally:
            await databases.drop(servers.administrator_url, name)


async def test_migrate_restores_lost_privileges(database: Database) -> None:
    async with databases.administrator(database.owner) as connection:
        await connection.execute(
            "REVOKE SELECT ON execution_events.event FROM execution_events_reader;"
            " GRANT CREATE ON SCHEMA public TO PUBLIC"
        )
        await migrate_as_owner(database)
        assert await connection.fetchval(
            "SELECT has_table_privilege('execution_events_reader', 'execution_events.event',"
            " 'SELECT') AND NOT has_schema_privilege('public', 'public', 'CREATE')"
        )


async def test_the_command_lists_pending_migrations_and_applies_them(servers: Servers) -> None:
    numbered = [f"{number:04} {name}" for number, name in enumerate(ALL, 1)]
    async with databases.empty(servers.administrator_url) as database:
        env = environment(configured(database_url=database.owner))
        for _ in range(2):
            output = await run_cli("migrate", "--check", env=env, code=1)
            assert output.splitlines() == [
                *(f"missing: {name}" for name in numbered),
                "run `execution-events migrate`",
            ]
        output = await run_cli("migrate", env=env)
        assert output.splitlines() == [*(f"applied: {name}" for name in numbered), "up to date"]
        assert await run_cli("migrate", "--check", env=env) == "up to date\n"
