"""The jars of Kafka: a committed list, a cache, and verified downloads."""

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from execution_events.embedded.errors import EmbeddedError, MissingExtraError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

CONCURRENT_DOWNLOADS = 6
ATTEMPTS = 3
TIMEOUT = 10  # seconds without a byte

Progress = Callable[[int, int, int], None]
"""Receives the number of jars in the cache, of jars in the list, and of bytes downloaded.

It is called from worker threads, one call at a time.
"""


def cache_directory(chosen: str | None) -> Path:
    """Return the directory of downloads: `chosen`, else one in the user's cache."""
    if chosen is not None:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches, "execution-events")


class JarsUnavailableError(EmbeddedError):
    """A jar that cannot be downloaded, or differs from the list."""

    def __init__(self, problem: str, directory: Path) -> None:
        super().__init__(
            f"{problem}\n"
            "Either\n"
            "  - name a proxy in HTTPS_PROXY and, if it inspects TLS, the file of its certificate\n"
            "    authority in REQUESTS_CA_BUNDLE,\n"
            "  - start the services one by one with a running Kafka, its address in\n"
            "    EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS, or\n"
            f"  - copy the directory {directory}\n"
            "    from a machine that has it."
        )


@dataclass(frozen=True, slots=True)
class Jar:
    """A jar of a Maven repository, with its checksum."""

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
        """Return whether the file exists and has this jar's checksum."""
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class JarList:
    """All jars of a program; `name` is their directory in a cache."""

    name: str
    jars: tuple[Jar, ...]

    @classmethod
    def load(cls, source: Traversable) -> Self:
        """Read a file that `jarlist` printed."""
        content = tomllib.loads(source.read_text("utf-8"))
        return cls(content["name"], tuple(Jar.parse(*item) for item in content["jars"].items()))

    async def provide(self, cache: Path, progress: Progress | None = None) -> list[Path]:
        """Return the files of all jars, in the order of the list, each verified by its SHA-256.

        Jars missing from `cache` are copied from the local Maven repository or downloaded, and
        appear in the cache once they are complete and verified: any number of processes may fill
        one cache at the same time, and a killed one leaves no broken file. No dependency is
        resolved.

        Raise JarsUnavailableError if a jar cannot be downloaded or its checksum differs.
        """
        stopped = threading.Event()
        try:
            return await asyncio.to_thread(self._provide, cache, progress, stopped)
        finally:
            stopped.set()  # threads cannot be cancelled: the downloads check this event

    def _provide(
        self, cache: Path, progress: Progress | None, stopped: threading.Event
    ) -> list[Path]:
        directory = cache.absolute() / self.name
        files = [directory / jar.filename for jar in self.jars]
        with ThreadPoolExecutor(CONCURRENT_DOWNLOADS) as pool:
            # All 45 MB at each start: it takes 0.1 s.
            verified = pool.map(Jar.matches, self.jars, files)
            missing = [jar for jar, valid in zip(self.jars, verified, strict=True) if not valid]
        if missing:
            meter = _Meter(len(self.jars) - len(missing), len(self.jars), progress, stopped)
            try:
                _fetch_all(missing, directory, meter)
            except OSError as error:
                raise JarsUnavailableError(
                    f"cannot store the jars of Kafka: {error}", directory
                ) from error
        return files


class ProgressLine:
    """Progress on a stream: one updated line on a terminal, else a line every few seconds."""

    def __init__(self, stream: TextIO, seconds: float = 3.0) -> None:
        self._stream = stream
        self._seconds = seconds
        self._next = 0.0

    def __call__(self, done: int, total: int, received: int) -> None:
        line = f"Kafka: {done} of {total} jars, {received / 1e6:.1f} MB downloaded"
        # The download continues if nobody reads the stream, as after `… | head`.
        with suppress(OSError):
            if self._stream.isatty():
                self._stream.write(f"\r{line}" + ("\n" if done == total else ""))
            elif done == total or time.monotonic() >= self._next:
                self._next = time.monotonic() + self._seconds
                self._stream.write(f"{line}\n")
            self._stream.flush()


class _Stopped(Exception):
    """The download was cancelled."""


class _Meter:
    """Counts of finished jars and received bytes over several threads."""

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
        """Yield the function that jgo calls with the length of each piece."""
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
        ThreadPoolExecutor(CONCURRENT_DOWNLOADS) as pool,
    ):
        maven = MavenContext(
            PythonResolver(progress_callback=meter.receiving),
            # Not the user's own repository: an interrupted download would stay there as half a
            # file, and later builds would take it for the jar.
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
                    f"{jar.coordinate}: the downloaded file has a wrong SHA-256 checksum",
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
    """Download the jar with jgo to `file`, its path in the repository."""
    artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in range(1, ATTEMPTS + 1):
        meter.add()
        try:
            artifact.resolve()
        except (OSError, RuntimeError) as error:  # the second: jgo's, for any refusal
            file.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise JarsUnavailableError(
                    f"cannot download {jar.coordinate}: {error}", directory
                ) from error
        else:
            return
