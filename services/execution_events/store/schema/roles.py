"""The service roles: their settings, privileges and passwords, and what only others may change.

Roles belong to the server. The owner of a database may lack the right to change one: what is left
is SQL for an administrator.
"""

from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from execution_events.errors import MisconfiguredError
from execution_events.store.schema.scram import verifier
from execution_events.store.sessions import OPS_CONNECTIONS, ROLE_SETTINGS
from execution_events.store.sql import load_queries

_SQL = load_queries("roles")


class Differences(NamedTuple):
    """Differences of roles and privileges from what they should be.

    `own`: what `migrate` changes, as text; `administrator`: SQL that another role has to run.
    """

    own: list[str]
    administrator: list[str]


async def set_roles(connection: asyncpg.Connection) -> None:
    """Create the roles and their settings, as far as the login may.

    Raises `MisconfiguredError`, with what an administrator has to run, if a role is missing then.
    """
    async with connection.transaction():
        await _attempt(connection, _SQL["lock_roles"])
        for statement, for_login in await _unmet(connection):
            if not for_login:
                await _attempt(connection, statement)
    missing = await connection.fetch(_SQL["missing_roles"], list(ROLE_SETTINGS))
    if missing:
        names = ", ".join(row["name"] for row in missing)
        raise MisconfiguredError(
            f"the login may not create the roles {names}; an administrator of the server has to "
            f"run\n{as_script(await left_for_administrator(connection))}",
            "roles",
        )


async def left_for_administrator(connection: asyncpg.Connection) -> list[str]:
    """Return statements that are needed and that the login may not run, after `set_roles`."""
    return [statement for statement, _ in await _unmet(connection)]


async def set_privileges(connection: asyncpg.Connection) -> None:
    """Set the privileges on all objects, in the caller's transaction."""
    await connection.execute((files(__package__) / "privileges.sql").read_text())


async def set_passwords(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    """Give each role LOGIN and its password, as a verifier: the server's log shows no password.

    Raises `MisconfiguredError`, with what an administrator has to run, if the login may not.
    """
    refused = []
    async with connection.transaction():
        await _attempt(connection, _SQL["lock_roles"])
        for role, password in passwords.items():
            statement = await connection.fetchval(_SQL["set_password"], role, verifier(password))
            if not await _attempt(connection, statement):
                refused.append(role)
    if refused:
        commands = [
            line for role in refused for line in (f"ALTER ROLE {role} LOGIN", f"\\password {role}")
        ]
        raise MisconfiguredError(
            f"the login may not set the passwords of {', '.join(refused)}; an administrator of the "
            f"server has to run, with psql,\n{as_script(commands)}",
            "roles",
        )


async def differences(connection: asyncpg.Connection) -> Differences:
    """Compare roles and privileges with what they should be; change nothing."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        before = await _privileges(connection), [s for s, _ in await _unmet(connection)]
        await set_roles(connection)
        left = await left_for_administrator(connection)
        await set_privileges(connection)
        after = await _privileges(connection)
    finally:
        await transaction.rollback()
    own = [f"to run: {statement}" for statement in before[1] if statement not in left]
    own += [f"missing: {privilege}" for privilege in sorted(after - before[0])]
    own += [f"to revoke: {privilege}" for privilege in sorted(before[0] - after)]
    return Differences(own, left)


async def restrict_public(connection: asyncpg.Connection) -> None:
    """Revoke what PostgreSQL permits to everybody in the database, as a superuser."""
    for statement, _ in await _unmet(connection):
        if statement.startswith("REVOKE EXECUTE"):
            await connection.execute(statement)


def as_script(statements: list[str]) -> str:
    """Return statements as a script for psql, indented."""
    ends = ("" if statement.startswith("\\") else ";" for statement in statements)
    return "\n".join(
        f"    {statement}{end}" for statement, end in zip(statements, ends, strict=True)
    )


async def _unmet(connection: asyncpg.Connection) -> list[tuple[str, bool]]:
    settings = [
        (role, name, value)
        for role, values in ROLE_SETTINGS.items()
        for name, value in values.items()
    ]
    rows = await connection.fetch(_SQL["unmet"], *zip(*settings, strict=True), OPS_CONNECTIONS)
    return [(row["statement"], row["for_login"]) for row in rows]


async def _privileges(connection: asyncpg.Connection) -> set[str]:
    return {row[0] for row in await connection.fetch(_SQL["privileges"])}


async def _attempt(connection: asyncpg.Connection, statement: str) -> bool:
    """Run a statement in a savepoint; return whether the login may run it."""
    refused = (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.UndefinedObjectError,
        asyncpg.DuplicateObjectError,
        asyncpg.UniqueViolationError,
    )
    with suppress(*refused):
        async with connection.transaction():
            await connection.execute(statement)
        return True
    return False
