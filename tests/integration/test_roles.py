"""Each role has the listed privileges and no others, by the catalogs and in practice."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from itertools import product

import asyncpg
import pytest

from execution_events.store.read.events import EventReader, Page
from execution_events.store.read.selection import Selection
from execution_events.store.schema import migrate
from execution_events.store.schema.migrate import migrations
from execution_events.store.sessions import OPS_CONNECTIONS, ROLE_SETTINGS
from tests.support.databases import PASSWORD, Database, administrator, migrate_as_owner
from tests.support.readers import reading
from tests.support.servers import Servers

PRIVATE = {
    "action",
    "event",
    "event_rate",
    "execution",
    "execution_change",
    "partition_progress",
    "partition_report",
    "producer_progress",
    "dead_letter",
    "schema_version",
}
PUBLIC_VIEWS = {
    "actions_v1",
    "dead_letters_v1",
    "durations_v1",
    "elements_v1",
    "event_rate_v1",
    "events_v1",
    "executions_v1",
    "failures_v1",
    "pipeline_v1",
    "quiet_v1",
}
SCHEMAS = ["execution_events", "ops", "public"]

OUTCOME = (
    "attempts",
    "last_attempt_at",
    "last_reason",
    "last_detail",
    "retried_at",
    "discarded_at",
)
"""Columns of a dead letter that retries and discards update."""

GRANTED = {
    "execution_events_writer": {
        "database": {"CONNECT"},
        "schema execution_events": {"USAGE"},
        "table execution_events.action": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "table execution_events.event": {"SELECT", "INSERT", "UPDATE"},
        "table execution_events.execution": {"SELECT", "INSERT", "UPDATE"},
        "table execution_events.execution_change": {"SELECT", "INSERT", "DELETE"},
        "table execution_events.event_rate": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        "table execution_events.partition_progress": {"SELECT", "INSERT", "UPDATE"},
        "table execution_events.partition_report": {"SELECT", "INSERT", "UPDATE"},
        "table execution_events.producer_progress": {"SELECT", "INSERT", "UPDATE"},
        "table execution_events.dead_letter": {"SELECT", "INSERT"},
        **{f"column execution_events.dead_letter.{column}": {"UPDATE"} for column in OUTCOME},
        "table execution_events.schema_version": {"SELECT"},
    },
    "execution_events_reader": {
        "database": {"CONNECT"},
        "schema execution_events": {"USAGE"},
        "table execution_events.action": {"SELECT"},
        "table execution_events.event": {"SELECT"},
        "table execution_events.execution": {"SELECT"},
        "table execution_events.execution_change": {"SELECT"},
        "table execution_events.schema_version": {"SELECT"},
        "function execution_events.first_half(text)": {"EXECUTE"},
        "function execution_events.second_half(text)": {"EXECUTE"},
        "function execution_events.body_text(bytea, text[])": {"EXECUTE"},
    },
    "execution_events_ops": {
        "database": {"CONNECT"},
        "schema ops": {"USAGE"},
        "function execution_events.first_half(text)": {"EXECUTE"},
        "function execution_events.second_half(text)": {"EXECUTE"},
        "function execution_events.body_text(bytea, text[])": {"EXECUTE"},
        **{f"table ops.{view}": {"SELECT"} for view in PUBLIC_VIEWS},
    },
    "public": {},
}
"""All privileges of each role on the database, its schemas and their objects."""

ROLES = {"writer", "reader", "ops"}

OF_EVERYBODY = {
    "large objects": ["SELECT lo_create(0)", "SELECT lo_creat(-1)", "SELECT lo_from_bytea(0, '')"],
    "messages in the WAL": [
        "SELECT pg_logical_emit_message(false, '', '')",
        "SELECT pg_logical_emit_message(true, '', ''::bytea)",
    ],
    "advisory locks": [
        f"SELECT pg_{kind}advisory_{scope}lock{mode}({key})"
        for kind, scope, mode, key in product(
            ("", "try_"), ("", "xact_"), ("", "_shared"), ("1", "1, 1")
        )
    ],
    "locks": [
        f"BEGIN; LOCK TABLE {relation} IN {mode} MODE"
        for relation, mode in (
            ("execution_events.schema_version", "SHARE ROW EXCLUSIVE"),
            ("execution_events.schema_version", "ACCESS EXCLUSIVE"),
            ("ops.events_v1", "ROW EXCLUSIVE"),
        )
    ],
    "sessions": [
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE usename = 'execution_events_owner' AND datname = current_database()"
    ],
    "roles": [
        "CREATE ROLE mine",
        "SET ROLE execution_events_owner",
        "ALTER ROLE execution_events_owner NOLOGIN",
        "GRANT execution_events_owner TO execution_events_ops",
        "ALTER ROLE execution_events_ops CONNECTION LIMIT -1",
        "ALTER ROLE ALL SET statement_timeout = 1",
    ],
    "the server": [
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/mine'",
        "ALTER SYSTEM SET work_mem = '1GB'",
        "SELECT pg_reload_conf()",
        "SELECT pg_switch_wal()",
        "SELECT pg_create_physical_replication_slot('mine')",
        "SELECT pg_stat_reset()",
        "SET session_replication_role = replica",
    ],
    "the database": [
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE EXTENSION hstore SCHEMA ops",
        "CREATE PUBLICATION mine",
        "CREATE DATABASE mine",
        "COMMENT ON SCHEMA ops IS ''",
        *(
            f"CREATE {thing}"
            for schema in ("execution_events", "ops", "public")
            for thing in (
                f"TABLE {schema}.mine ()",
                f"VIEW {schema}.mine AS SELECT 1",
                f"FUNCTION {schema}.mine() RETURNS integer LANGUAGE sql RETURN 1",
                f"TYPE {schema}.mine AS ENUM ()",
            )
        ),
    ],
}
"""Statements that no service role may execute, by what they concern."""

# Objects in the schemas $2, and the privileges of the role $1 on them.
_PRIVILEGES = """
SELECT 'database', privilege
FROM unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) AS privilege
WHERE has_database_privilege($1, current_database(), privilege)
UNION ALL
SELECT 'schema ' || nspname, privilege
FROM pg_namespace, unnest(ARRAY['USAGE', 'CREATE']) AS privilege
WHERE nspname = ANY ($2) AND has_schema_privilege($1, pg_namespace.oid, privilege)
UNION ALL
SELECT format('table %s.%s', nspname, relname), privilege
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace,
    unnest(
        ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
        || CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN ARRAY['MAINTAIN'] END
    ) AS privilege
WHERE nspname = ANY ($2) AND relkind IN ('r', 'p', 'v', 'm', 'f')
    AND has_table_privilege($1, pg_class.oid, privilege)
UNION ALL
SELECT format('column %s.%s.%s', nspname, relname, attname), privilege
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_attribute ON attrelid = pg_class.oid,
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS privilege
WHERE nspname = ANY ($2) AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT attisdropped
    AND has_column_privilege($1, pg_class.oid, attnum, privilege)
    AND NOT has_table_privilege($1, pg_class.oid, privilege)
UNION ALL
SELECT format('sequence %s.%s', nspname, relname), privilege
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace,
    unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
WHERE nspname = ANY ($2) AND relkind = 'S'
    AND has_sequence_privilege($1, pg_class.oid, privilege)
UNION ALL
SELECT format('function %s.%s(%s)', nspname, proname, oidvectortypes(proargtypes)), 'EXECUTE'
FROM pg_proc
JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE nspname = ANY ($2) AND has_function_privilege($1, pg_proc.oid, 'EXECUTE')
"""


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.owner) as connection:
        yield connection


async def allowed(connection: asyncpg.Connection, statements: Iterable[str]) -> list[str]:
    """Return the statements that are not refused for lack of a privilege."""
    done = []
    for statement in statements:
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            await connection.execute("ROLLBACK")
            continue
        done.append(statement)
    return done


async def objects(owner: asyncpg.Connection, schema: str, kinds: str) -> set[str]:
    rows = await owner.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace"
        ' AND relkind = ANY ($2::text[]::"char"[])',
        schema,
        list(kinds),
    )
    return {row["relname"] for row in rows}


async def test_all_tables_and_views_are_listed(owner: asyncpg.Connection) -> None:
    """The tests below use these lists."""
    assert await objects(owner, "execution_events", "rpvmf") == PRIVATE
    assert await objects(owner, "ops", "rpvmf") == PUBLIC_VIEWS
    rows = await owner.fetch(
        "SELECT nspname FROM pg_namespace"
        " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    )
    assert sorted(row["nspname"] for row in rows) == SCHEMAS


@pytest.mark.parametrize("role", GRANTED)
async def test_a_role_has_exactly_the_listed_privileges(
    owner: asyncpg.Connection, role: str
) -> None:
    granted: dict[str, set[str]] = {}
    for thing, privilege in await owner.fetch(_PRIVILEGES, role, SCHEMAS):
        granted.setdefault(thing, set()).add(privilege)
    assert granted == GRANTED[role]


async def test_no_service_role_has_a_server_wide_privilege(owner: asyncpg.Connection) -> None:
    roles = sorted(set(GRANTED) - {"public"})
    rows = await owner.fetch(
        "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
        " FROM pg_roles WHERE rolname = ANY ($1) ORDER BY rolname",
        roles,
    )
    assert [tuple(row) for row in rows] == [(role, *[False] * 5) for role in roles]
    assert not await owner.fetch(
        "SELECT roleid::regrole FROM pg_auth_members WHERE member::regrole::text = ANY ($1)", roles
    )


async def test_new_objects_are_private_until_granted(owner: asyncpg.Connection) -> None:
    for schema in SCHEMAS:
        await owner.execute(f"CREATE TABLE {schema}.later (id bigserial)")
    for role in GRANTED:
        rows = await owner.fetch(_PRIVILEGES, role, SCHEMAS)
        assert [row for row in rows if "later" in row[0]] == [], role


@pytest.mark.parametrize("kind", OF_EVERYBODY)
@pytest.mark.parametrize("role", sorted(ROLES))
async def test_a_role_is_denied_what_others_may(
    database: Database, owner: asyncpg.Connection, role: str, kind: str
) -> None:
    statements = OF_EVERYBODY[kind]
    if kind == "roles":
        statements = [
            *statements,
            *(f"SET ROLE execution_events_{other}" for other in ROLES - {role}),
        ]
    if kind == "locks" and role != "writer":  # which may update the table
        statements = [*statements, "BEGIN; LOCK TABLE execution_events.event IN SHARE MODE"]
    async with administrator(getattr(database, role)) as connection:
        await connection.execute("SET default_transaction_read_only = off")
        assert await allowed(connection, statements) == []
    print(f"{role} was denied: {'; '.join(statements)}")


@pytest.mark.parametrize("role", ["owner", "writer", "reader", "ops"])
async def test_a_pool_of_a_driver_can_reset_its_sessions(database: Database, role: str) -> None:
    """asyncpg's releases advisory locks between two uses of a session, which harms nobody."""
    async with asyncpg.create_pool(getattr(database, role), min_size=1, max_size=1) as pool:
        for number in range(2):
            assert await pool.fetchval("SELECT $1::integer", number) == number


async def test_ops_can_read_the_views_only(database: Database, owner: asyncpg.Connection) -> None:
    async with administrator(database.ops) as ops:
        for view in PUBLIC_VIEWS:
            assert await ops.fetch(f"SELECT * FROM ops.{view}") == []
        private = [f"SELECT FROM execution_events.{table}" for table in PRIVATE]
        changes = [f"COMMENT ON VIEW ops.{view} IS ''" for view in PUBLIC_VIEWS]
        # PostgreSQL can update these views.
        changes += [f"DELETE FROM ops.{view}" for view in ("events_v1", "failures_v1")]
        assert await allowed(ops, [*private, *changes]) == []


async def test_ops_cannot_create_objects(database: Database) -> None:
    async with administrator(database.ops) as ops:
        schemas = [
            row[0] for row in await ops.fetch("SELECT quote_ident(nspname) FROM pg_namespace")
        ]
        assert set(schemas) > set(SCHEMAS)
        tables = [
            f"CREATE TABLE {schema}.mine ()"
            for schema in schemas
            if not schema.startswith(("pg_temp", "pg_toast"))
        ]
        others = ["CREATE SCHEMA mine", "CREATE TEMPORARY TABLE mine ()", "CREATE ROLE mine"]
        assert await allowed(ops, [*tables, *others]) == []


async def test_ops_has_limits(database: Database) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(OPS_CONNECTIONS):
            ops = await stack.enter_async_context(administrator(database.ops))
        assert await ops.fetchval("SHOW statement_timeout") == "30s"
        assert await ops.fetchval("SHOW idle_in_transaction_session_timeout") == "30s"
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(database.ops)


@pytest.mark.parametrize("role", ["writer", "reader"])
async def test_the_limits_of_a_service_are_those_of_its_role(database: Database, role: str) -> None:
    """Behind a pooler in transaction mode it cannot set them itself."""
    async with administrator(getattr(database, role)) as connection:
        for name, value in ROLE_SETTINGS[f"execution_events_{role}"].items():
            stored = await connection.fetchval(f"SHOW {name}")
            await connection.execute(f"SET {name} = '{value}'")
            assert stored == await connection.fetchval(f"SHOW {name}"), name


async def test_an_open_transaction_of_ops_delays_neither_migrate_nor_the_reader(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()
    later = known[-1]._replace(
        version=len(known) + 1, name="later", sql="ALTER TABLE event ADD COLUMN later text"
    )
    async with (
        reading(database.reader) as reader,
        administrator(database.ops) as ops,
        administrator(database.ops) as other,
    ):
        monkeypatch.setattr(migrate, "migrations", lambda: [*known, later])
        await ops.execute("SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0")
        await ops.execute("BEGIN; SELECT count(*) FROM ops.events_v1")
        migrating = asyncio.create_task(migrate_as_owner(database))
        durations = []
        while not migrating.done():
            began = time.monotonic()
            assert await reader.events() == []
            durations.append(time.monotonic() - began)
        assert await migrating == ["later"]
        assert max(durations) < 5
        assert len(durations) > 10
        # Only the session that held a lock was ended.
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await ops.execute("SELECT 1")
        await other.execute("SELECT 1")


async def test_the_reader_cannot_write(database: Database) -> None:
    async with EventReader.open(database.reader) as lists:
        await lists.check()
        for only in ((), (("reason", ("ActionStart",)),)):
            selection = Selection(only=only, text="a")
            page = await lists.page("execution-1", selection, frozenset({"tenant"}), 1)
            assert page == Page("", [], None)
    async with administrator(database.reader) as reader:
        await reader.execute("SET default_transaction_read_only = off")
        statements = [
            verb.format(f"execution_events.{table}")
            for verb, table in product(
                ["INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"],
                PRIVATE,
            )
        ]
        others = [
            "UPDATE execution_events.event SET count = 1",
            "SELECT FROM execution_events.dead_letter",
            "SELECT FROM execution_events.partition_progress",
            "SELECT FROM execution_events.producer_progress",
            "SELECT FROM ops.events_v1",
            "CREATE TABLE execution_events.mine ()",
            "CREATE TABLE public.mine ()",
            "CREATE TEMPORARY TABLE mine ()",
        ]
        assert await allowed(reader, [*statements, *others]) == []


async def test_the_writer_cannot_delete_events(database: Database) -> None:
    """`test_store_batches.py` shows that it can store a batch."""
    async with administrator(database.writer) as writer:
        statements = [
            verb.format(f"execution_events.{table}")
            for verb, table in product(
                [
                    "DELETE FROM {}",
                    "TRUNCATE {}",
                    "DROP TABLE {}",
                    "ALTER TABLE {} ADD mine text",
                    "CREATE INDEX ON {} ((1))",
                ],
                PRIVATE,
            )
        ]
        others = [
            "UPDATE execution_events.dead_letter SET reason = ''",
            "UPDATE execution_events.schema_version SET version = 1",
            "INSERT INTO execution_events.schema_version VALUES (9999, '')",
            "SELECT FROM ops.events_v1",
            "CREATE TABLE execution_events.mine ()",
            "CREATE TABLE public.mine ()",
            "CREATE SCHEMA mine",
            "SET ROLE execution_events_owner",
        ]
        # Changes and rates are deleted after their retention, actions when their last event moves.
        forgets = [
            f"DELETE FROM execution_events.{table}"
            for table in ("action", "event_rate", "execution_change")
        ]
        assert sorted(await allowed(writer, [*statements, *others])) == forgets


async def test_other_roles_of_the_server_cannot_connect(
    servers: Servers, database: Database
) -> None:
    stranger = f"stranger_{secrets.token_hex(4)}"
    async with administrator(servers.administrator_url) as admin:
        await admin.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD '{PASSWORD}'")
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(database.reader, user=stranger)
        finally:
            await admin.execute(f"DROP ROLE {stranger}")
