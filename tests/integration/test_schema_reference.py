"""The references in `schemas/` equal a migrated database."""

import asyncpg
import pytest

from tests.support import postgresql, schema_reference

_COMMAND = "run `python -m tests.support.schema_reference`"


async def test_database_sql_equals_a_migrated_database(owner: asyncpg.Connection) -> None:
    reference = await schema_reference.database_reference(owner)
    assert schema_reference.DATABASE.read_text() == reference, _COMMAND


async def test_ops_sql_equals_a_migrated_database(owner: asyncpg.Connection) -> None:
    if owner.get_server_version().major != postgresql.DEFAULT:
        pytest.skip("other versions of PostgreSQL print the text of views differently")
    reference = await schema_reference.ops_reference(owner)
    assert schema_reference.OPS.read_text() == reference, _COMMAND


async def test_database_sql_creates_the_schema_that_it_describes(owner: asyncpg.Connection) -> None:
    script = schema_reference.DATABASE.read_text().replace("execution_events", "described")
    await owner.execute(f"CREATE SCHEMA described; SET search_path = described; {script}")
    reference = await schema_reference.database_reference(owner, "described")
    assert (
        reference.replace("described", "execution_events") == schema_reference.DATABASE.read_text()
    )
