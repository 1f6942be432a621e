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
# Below the ports that the kernel gives to outgoing connections, which would take a server's port
# while the server is down.
PORTS = range(20_000, 32_000)


class DataDirectory:
    """The directory of one instance, held by this process while the context is open.

    One process at a time holds a directory. The lock is inherited by the servers that are started
    on it (`lock`), so a directory counts as held until the last server of an earlier run has
    gone, even when that run was killed. Waiting for it is announced through `on_line` and lasts
    `patience` seconds at most; then entering raises EmbeddedError.

    The directory is created for its owner alone. The mode of one that exists never changes, and
    neither does that of its parents.
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
        # Closing is not unlocking: the lock stays with the servers that still run.
        os.close(self.lock)
        self._lock = None

    @property
    def lock(self) -> int:
        """The descriptor of the lock, for the servers of this directory to inherit."""
        if self._lock is None:
            raise RuntimeError(f"{self.path} is not held")
        return self._lock

    def port(self, name: str, fixed: int | None = None, preferred: int | None = None) -> int:
        """A free TCP port of 127.0.0.1 for the server `name`.

        `fixed` when given, else the port of the last time while that is free, else `preferred`
        while that is free, else a new one.
        Raises EmbeddedError when `fixed` is taken.
        """
        self.lock  # noqa: B018
        file = self.path / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        others = {port for other, port in ports.items() if other != name}
        if fixed is not None:
            if not _is_free(fixed):
                raise EmbeddedError(
                    f"Port {fixed} for {name} is taken on {HOST}. Choose another port, or stop"
                    " the program that listens on it."
                )
            port = fixed
        elif name in ports and _is_free(ports[name]):
            port = ports[name]
        elif preferred is not None and _is_free(preferred):
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
                    f"{self.path} is in use by another run. Stop that run, or choose another"
                    " data directory."
                )
            if not announced:
                self._on_line(f"waiting for the previous run on {self.path} to stop")
                announced = True
            await asyncio.sleep(0.1)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Root's servers run under another account, which must be able to pass through.
        path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(f"The data directory cannot be used: {error}") from error


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        # As the servers do: a connection of the last run in TIME_WAIT does not count.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port(excluded: set[int]) -> int:
    for port in random.sample(PORTS, len(PORTS)):
        if port not in excluded and _is_free(port):
            return port
    raise EmbeddedError(f"No port between {PORTS.start} and {PORTS.stop} is free on {HOST}.")
