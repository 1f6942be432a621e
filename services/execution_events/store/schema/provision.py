"""Provisioning of a database and its owner, for the first `migrate`."""

from urllib.parse import quote, urlsplit

from execution_events.store.connection import connect, translated_errors
from execution_events.store.schema.roles import restrict_public
from execution_events.store.schema.scram import verifier

_APPLICATION = "execution-events provision"


async def provision_database(
    administrator_url: str, database: str, owner: str, password: str
) -> None:
    """Create the role `owner`, with CREATEROLE, and its `database` unless they exist.

    Sets the password of an existing role too, and revokes what only a superuser can.
    """
    async with connect(administrator_url, _APPLICATION, unlimited=True) as admin:
        with translated_errors():
            exists = await admin.fetchval(
                "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", owner
            )
            await admin.execute(
                await admin.fetchval(
                    "SELECT format('%s ROLE %I LOGIN CREATEROLE PASSWORD %L', $1::text, $2::text,"
                    " $3::text)",
                    "ALTER" if exists else "CREATE",
                    owner,
                    verifier(password),
                )
            )
            if not await admin.fetchval(
                "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database
            ):
                await admin.execute(
                    await admin.fetchval(
                        "SELECT format('CREATE DATABASE %I OWNER %I', $1::text, $2::text)",
                        database,
                        owner,
                    )
                )
    url = urlsplit(administrator_url)._replace(path=f"/{quote(database, safe='')}").geturl()
    async with connect(url, _APPLICATION, unlimited=True) as admin:
        with translated_errors():
            await restrict_public(admin)
