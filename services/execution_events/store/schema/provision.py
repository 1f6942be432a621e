"""Provisioning of a database and its owner, for the first `migrate`."""

from execution_events.store.connection import connect, translated_errors


async def provision_database(
    administrator_url: str, database: str, owner: str, password: str
) -> None:
    """Create the role `owner`, with CREATEROLE, and its `database` unless they exist.

    Sets the password of an existing role too.
    """
    async with connect(administrator_url, "execution-events provision", unlimited=True) as admin:
        with translated_errors():
            exists = await admin.fetchval(
                "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", owner
            )
            verb = "ALTER" if exists else "CREATE"
            await admin.execute(
                await admin.fetchval(
                    "SELECT format('%s ROLE %I LOGIN CREATEROLE PASSWORD %L', $1::text, $2::text,"
                    " $3::text)",
                    verb,
                    owner,
                    password,
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
