import asyncio
import hashlib
import shutil
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from execution_events.embedded.errors import EmbeddedError, MissingExtraError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

AT_ONCE = 6
ATTEMPTS = 3
TIMEOUT = 10  # seconds without a byte

Progress = Callable[[int, int, int], None]
"""Receives the jars that are there, the jars of the list, and the bytes downloaded so far.

It is called from worker threads, by one at a time.
"""


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where the jars are kept unless the user says otherwise."""
    if chosen := environ.get("EXECUTION_EVENTS_CACHE_DIR"):
        return Path(chosen)
    caches = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches, "execution-events")


class JarsUnavailableError(EmbeddedError):
    """A jar cannot be downloaded, or is not the one of the list."""

    def __init__(self, what: str, directory: Path) -> None:
        super().__init__(
            f"{what}\n"
            "There are two ways around it:\n"
            "  - start the services one by one, on a running Kafka that\n"
            "    EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS names;\n"
            f"  - copy the directory {directory}\n"
            "    from a machine that has it."
        )


@dataclass(frozen=True, slots=True)
class Jar:
    group: str
    artifact: str
    version: str
    sha256: str

    @classmethod
    def parse(cls, coordinate: str, sha256: str) -> Self:
        group, artifact, version = coordinate.split(":")
        return cls(group, artifact, version, sha256)

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    def matches(self, file: Path) -> bool:
        """Whether the file is there and is this jar, byte for byte."""
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class JarList:
    """Every jar of a program. `name` names their directory in a cache."""

    name: str
    jars: tuple[Jar, ...]

    @classmethod
    def load(cls, source: Traversable) -> Self:
        """The list of a file that `jarlist` printed."""
        content = tomllib.loads(source.read_text("utf-8"))
        return cls(content["name"], tuple(Jar.parse(*item) for item in content["jars"].items()))

    async def provide(self, cache: Path, progress: Progress | None = None) -> list[Path]:
        """The files of all jars, in the order of the list, each verified by its SHA-256.

        What `cache` lacks is taken from the local Maven repository or downloaded, and appears in
        the cache only when it is complete and verified: any number of processes may fill one
        cache at once, and one that is killed leaves no broken file. No dependency is resolved.

        Raises JarsUnavailableError when a jar cannot be had or is a different one.
        """
        stopped = threading.Event()
        try:
            return await asyncio.to_thread(self._provide, cache, progress, stopped)
        finally:
            stopped.set()  # a thread cannot be cancelled: the downloads look for this

    def _provide(
        self, cache: Path, progress: Progress | None, stopped: threading.Event
    ) -> list[Path]:
        directory = cache.absolute() / self.name
        files = [directory / jar.filename for jar in self.jars]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            # All 45 MB each time: it takes a tenth of a second, less than the trust is worth.
            verified = pool.map(Jar.matches, self.jars, files)
            missing = [jar for jar, there in zip(self.jars, verified, strict=True) if not there]
        if missing:
            meter = _Meter(len(self.jars) - len(missing), len(self.jars), progress, stopped)
            try:
                _fetch_all(missing, directory, meter)
            except OSError as error:
                raise JarsUnavailableError(f"Kafka cannot be stored: {error}", directory) from error
        return files


class ProgressLine:
    """Shows the progress on a stream: one changing line on a terminal, else one in a while."""

    def __init__(self, stream: TextIO, seconds: float = 3.0) -> None:
        self._stream = stream
        self._seconds = seconds
        self._next = 0.0

    def __call__(self, done: int, total: int, received: int) -> None:
        line = f"Kafka: {done} of {total} jars, {received / 1e6:.1f} MB downloaded"
        if self._stream.isatty():
            self._stream.write(f"\r{line}" + ("\n" if done == total else ""))
        elif done == total or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._stream.write(f"{line}\n")
        self._stream.flush()


class _Stopped(Exception):
    """Nobody waits for the jars any more."""


class _Meter:
    """Counts what the downloads of several threads bring."""

    def __init__(
        self, done: int, total: int, progress: Progress | None, stopped: threading.Event
    ) -> None:
        self._done = done
        self._total = total
        self._received = 0
        self._progress = progress
        self._lock = threading.Lock()
        self.stopped = stopped

    @contextmanager
    def receiving(self, filename: str, size: int) -> Iterator[Callable[[int], None]]:
        """The hook of jgo: what it yields is called with the length of each piece."""
        yield lambda length: self.add(received=length)

    def add(self, *, done: int = 0, received: int = 0) -> None:
        if self.stopped.is_set():
            raise _Stopped
        with self._lock:
            self._done += done
            self._received += received
            if self._progress is not None:
                self._progress(self._done, self._total, self._received)


def _fetch_all(jars: Sequence[Jar], directory: Path, meter: _Meter) -> None:
    try:
        from jgo.config import GlobalSettings
        from jgo.maven import MavenContext, PythonResolver
    except ModuleNotFoundError as error:
        raise MissingExtraError("jgo") from error

    directory.mkdir(parents=True, exist_ok=True)
    settings = GlobalSettings.load()
    with (
        tempfile.TemporaryDirectory(prefix=".incoming-", dir=directory) as incoming,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        maven = MavenContext(
            PythonResolver(progress_callback=meter.receiving),
            # Not the user's own repository: a download that is cut off would stay there as half
            # a file, and be taken for the whole one by every later build.
            repo_cache=Path(incoming),
            remote_repos=MavenContext().remote_repos | settings.repositories,
            timeout=TIMEOUT,
        )

        def fetch(jar: Jar) -> None:
            path = Path(*jar.group.split("."), jar.artifact, jar.version, jar.filename)
            local, file = Path(settings.repo_cache, path), Path(incoming, path)
            if jar.matches(local):
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(local, file)
            else:
                _download(jar, file, maven, directory, meter)
            if not jar.matches(file):
                raise JarsUnavailableError(
                    f"What was downloaded as {jar.coordinate} has a wrong SHA-256 checksum.",
                    directory,
                )
            file.replace(directory / jar.filename)
            meter.add(done=1)

        try:
            for future in [pool.submit(fetch, jar) for jar in jars]:
                future.result()
        finally:
            meter.stopped.set()


def _download(jar: Jar, file: Path, maven: "MavenContext", directory: Path, meter: _Meter) -> None:
    """Let jgo put the jar where `file` is in its repository."""
    artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in range(1, ATTEMPTS + 1):
        meter.add()
        try:
            artifact.resolve()
        except (OSError, RuntimeError) as error:  # of the network; of jgo, for every refusal
            file.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise JarsUnavailableError(
                    f"{jar.coordinate} cannot be downloaded: {error}", directory
                ) from error
        else:
            return
