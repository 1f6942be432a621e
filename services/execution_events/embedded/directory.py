"""The data directory of one instance: its lock and its servers' ports."""

import asyncio
import fcntl
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from execution_events.embedded.errors import EmbeddedError
from execution_events.embedded.process import ignore

HOST = "127.0.0.1"
# Below the kernel's ephemeral ports: an outgoing connection must not take the port of a server
# that is down.
PORTS = range(20_000, 32_000)


class DataDirectory:
    """The data directory of one instance, locked while the context is open.

    One process at a time holds a directory. Servers inherit the lock (`lock`), so a directory
    stays locked until the last server of an earlier run has ended, even if that run was killed.
    Entering waits for the lock for at most `patience` seconds, says so through `on_line`, and then
    raises EmbeddedError.

    A new directory is accessible to its owner only. The mode of an existing directory and of its
    parents never changes.
    """

    def __init__(
        self,
        path: Path,
        *,
        patience: float = 30.0,
        on_line: Callable[[str], None] = ignore,
    ) -> None:
        self.path = path.absolute()
        self._patience = patience
        self._on_line = on_line
        self._lock: int | None = None

    async def __aenter__(self) -> Self:
        lock = _open_lock(self.path)
        try:
            await self._acquire(lock)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing does not unlock: servers that still run keep the lock.
        os.close(self.lock)
        self._lock = None

    @property
    def lock(self) -> int:
        """The descriptor of the lock; servers inherit it."""
        if self._lock is None:
            raise RuntimeError(f"{self.path} is not locked")
        return self._lock

    def port(self, name: str, fixed: int | None = None, preferred: int | None = None) -> int:
        """Return a free TCP port of 127.0.0.1 for the server `name`, and remember it.

        In this order: `fixed` if given; the port of the last run if free; `preferred` if free; a
        random one. Raise EmbeddedError if `fixed` is taken.
        """
        self.lock  # noqa: B018
        file = self.path / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        others = {port for other, port in ports.items() if other != name}
        if fixed is not None:
            if not is_free(fixed):
                raise EmbeddedError(
                    f"port {fixed} for {name} is taken on {HOST}: choose another port, or stop the"
                    " program that listens on it"
                )
            port = fixed
        elif name in ports and is_free(ports[name]):
            port = ports[name]
        elif preferred is not None and is_free(preferred):
            port = preferred
        else:
            port = _free_port(others)
        ports[name] = port
        new = file.with_suffix(".new")
        new.write_text(json.dumps(ports, indent=2) + "\n")
        new.replace(file)
        return port

    async def _acquire(self, lock: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        announced = False
        while not _locked(lock):
            if loop.time() >= deadline:
                raise EmbeddedError(
                    f"{self.path} is in use by another run: stop that run, or choose another data"
                    " directory"
                )
            if not announced:
                self._on_line(f"waiting for the previous run on {self.path} to stop")
                announced = True
            await asyncio.sleep(0.1)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Root's PostgreSQL runs under another account, which must be able to search the directory.
        path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(f"cannot use the data directory: {error}") from error


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on the port of 127.0.0.1."""
    with socket.socket() as candidate:
        # As the servers do: connections of the last run in TIME_WAIT do not block the port.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port(excluded: set[int]) -> int:
    for port in random.sample(PORTS, len(PORTS)):
        if port not in excluded and is_free(port):
            return port
    raise EmbeddedError(f"no port between {PORTS.start} and {PORTS.stop} is free on {HOST}")
