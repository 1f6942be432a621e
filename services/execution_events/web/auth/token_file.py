"""The token file: a JSON object from the SHA-256 of each token, in hex, to its namespaces.

    {"b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9": ["namespace", "other"]}

`["*"]` is all namespaces. `printf %s TOKEN | sha256sum` prints the hash. Tokens must be random, of
128 bits or more: their hashes have no salt.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from execution_events.errors import SettingsError
from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.settings import variable_of
from execution_events.web.auth.access import Caller, is_namespace

_log = Logger(__name__)

FILE_MAX_BYTES = 16 * 2**20
_POLL_INTERVAL = 1.0
"""Seconds between checks of the file."""
_HASH = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256().digest()
"""The hash that a script prints for an unset variable; an empty token is never valid."""


class TokenFileError(ValueError):
    """Correct the file; the text gives the number of the entry and none of its content."""


class _Version(NamedTuple):
    inode: int
    size: int
    modified: int


class _Entry(NamedTuple):
    digest: bytes
    caller: Caller


_NO_ENTRY = _Entry(bytes(32), Caller(frozenset(), ""))


class TokenFile:
    """The tokens of the last valid version of a file.

    A changed file is in force within two seconds. While the file is unreadable or invalid, the
    tokens loaded before stay in force and `problems` returns the cause.
    """

    def __init__(self, path: Path, metrics: ReaderMetrics) -> None:
        """Load the file; raises `SettingsError` if it is unreadable or invalid."""
        self._path = path
        self._metrics = metrics
        self._problem: str | None = None
        self._version: _Version | None = None
        self._entries: dict[bytes, _Entry] = {}
        try:
            self._apply(_read(path, None))
        except (OSError, TokenFileError) as error:
            raise SettingsError(f"{variable_of('tokens_file')}: {_reason(error)}") from error

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, metrics: ReaderMetrics) -> AsyncIterator["TokenFile"]:
        """Load the file at `path`, and reload it when it changes until exit."""
        tokens = cls(path, metrics)
        polling = asyncio.create_task(tokens._poll())
        try:
            yield tokens
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling

    async def caller(self, token: bytes) -> Caller | None:
        """Return the caller with this token, after the same work for known and unknown tokens.

        The timing of the lookup by hash reveals nothing useful: a client cannot choose the hash of
        a guess, and hash tables are seeded anew in each process.
        """
        digest = hashlib.sha256(token).digest()
        entry = self._entries.get(digest, _NO_ENTRY)
        return entry.caller if hmac.compare_digest(entry.digest, digest) else None

    def problems(self) -> list[str]:
        if self._problem is None:
            return []
        return [f"token file not reloaded, earlier tokens stay in force: {self._problem}"]

    async def refresh(self) -> None:
        """Load the file again if it has changed."""
        try:
            loaded = await asyncio.to_thread(_read, self._path, self._version)
        except (OSError, TokenFileError) as error:
            problem = _reason(error)
            if problem != self._problem:
                _log.error("token_file_reload_failed", path=str(self._path), error=problem)
            self._problem = problem
            return
        self._apply(loaded)

    def _apply(self, loaded: tuple[_Version, dict[bytes, _Entry]] | None) -> None:
        self._problem = None
        self._metrics.credentials_read.set_to_current_time()
        if loaded is not None:
            self._version, self._entries = loaded
            _log.info("token_file_loaded", path=str(self._path), tokens=len(self._entries))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_INTERVAL)
            await self.refresh()


def _version(descriptor: int) -> _Version:
    status = os.fstat(descriptor)
    return _Version(status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path, known: _Version | None) -> tuple[_Version, dict[bytes, _Entry]] | None:
    """Return the file's version and entries; None if the version is `known`."""
    # Opening a named pipe must not wait for its writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        version = _version(file.fileno())
        if version == known:
            return None
        content = file.read(FILE_MAX_BYTES + 1)
        if _version(file.fileno()) != version:
            raise TokenFileError("the file changed while it was read")
    return version, parse_tokens(content)


def parse_tokens(content: bytes) -> dict[bytes, _Entry]:
    """Return the entries of a token file by hash; raises `TokenFileError`."""
    if len(content) > FILE_MAX_BYTES:
        raise TokenFileError(f"expected at most {FILE_MAX_BYTES} bytes")
    try:
        # Unlike a dict, a tuple of members keeps duplicate names.
        members = json.loads(content.decode(), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        # The decoder's own text can quote the content.
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise TokenFileError(f"expected JSON in UTF-8{line}") from None
    if not isinstance(members, tuple):
        raise TokenFileError("expected an object")
    entries: dict[bytes, _Entry] = {}
    for number, (name, namespaces) in enumerate(members, 1):
        if not _HASH.fullmatch(name):
            raise TokenFileError(f"entry {number}: expected a SHA-256 of 64 digits 0-9 a-f")
        digest = bytes.fromhex(name)
        if digest == _EMPTY:
            raise TokenFileError(f"entry {number}: expected a token, got the hash of an empty text")
        if digest in entries:
            raise TokenFileError(f"entry {number}: duplicate token")
        if not _are_namespaces(namespaces):
            raise TokenFileError(f"entry {number}: expected an array of namespaces")
        # Hashed again: the digest would identify the token to anyone with the file.
        limit_key = f"token:{hashlib.blake2b(digest, digest_size=8).hexdigest()}"
        entries[digest] = _Entry(digest, Caller.of_token(namespaces, limit_key))
    return entries


def _are_namespaces(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, str) and is_namespace(item) for item in value
    )


def _reason(error: Exception) -> str:
    """Return one line without any content of the file."""
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
