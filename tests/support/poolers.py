"""PgBouncer in front of the tests' PostgreSQL; `make pooler` installs it (Debian)."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from execution_events.embedded import ChildProcess
from tests.support.databases import PASSWORD, SERVICE_ROLES, Database, urls

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@asynccontextmanager
async def pooled(
    database: Database, mode: Literal["transaction", "session"], pool_size: int = 3
) -> AsyncIterator[Database]:
    """The database behind PgBouncer; its service roles can log in.

    It gives a client the session that was used least recently, so that a client seldom gets the
    same one twice.
    """
    assert PGBOUNCER
    server = urlsplit(database.reader)
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        port = taken.getsockname()[1]
        users = Path(directory, "users.txt")
        users.write_text("".join(f'"{role}" "{PASSWORD}"\n' for role in SERVICE_ROLES))
        configuration = Path(directory, "pgbouncer.ini")
        configuration.write_text(
            f"""
[databases]
* = host={server.hostname} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
default_pool_size = {pool_size}
server_round_robin = 1
"""
        )
        for path in (Path(directory), users, configuration):
            path.chmod(0o755)
        taken.close()
        # PgBouncer refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        async with ChildProcess([PGBOUNCER, configuration], user=user) as process:
            await process.until_ready(lambda: _listens(port), timeout=10)
            yield urls(f"postgresql://127.0.0.1:{port}", server.path[1:])


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
