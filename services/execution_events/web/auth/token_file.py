"""The token file: a JSON object of the SHA-256 of each token, in hex, and its namespaces.

    {"b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9": ["namespace", "other"]}

`printf %s TOKEN | sha256sum` gives the hash. Tokens are made at random, of 128 bits or more.
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
_INTERVAL = 1.0
"""Seconds between two looks at the file."""
_HASH = re.compile(r"[0-9a-f]{64}")


class TokenFileError(ValueError):
    """Correct the file; the text names the entry by its number and holds nothing of it."""


class _Version(NamedTuple):
    inode: int
    size: int
    modified: int


class _Entry(NamedTuple):
    digest: bytes
    caller: Caller


_NOBODY = _Entry(bytes(32), Caller(frozenset(), "nobody"))


class TokenFile:
    """The tokens of a file, as it was when it was last right.

    A file that has changed is in force a second or two later. While it cannot be read or is
    wrong, what was read before stays in force, and `problems` tells.
    """

    def __init__(self, path: Path, metrics: ReaderMetrics) -> None:
        """Reads the file; raises `SettingsError` where it cannot be read or is wrong."""
        self._path = path
        self._metrics = metrics
        self._problem: str | None = None
        self._version: _Version | None = None
        self._entries: dict[bytes, _Entry] = {}
        try:
            self._take(_read(path, None))
        except (OSError, TokenFileError) as error:
            raise SettingsError(f"{variable_of('tokens_file')}: {_reason(error)}") from error

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, metrics: ReaderMetrics) -> AsyncIterator["TokenFile"]:
        """The file at `path`, looked at every second until the end."""
        tokens = cls(path, metrics)
        watching = asyncio.create_task(tokens._watch())
        try:
            yield tokens
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def caller(self, token: bytes) -> Caller | None:
        """Whose the token is; the work is the same for tokens that are not in the file.

        What the time of the search by hash may tell is of no use to whoever does not know a token:
        its hash cannot be steered, and the table's order is another one in each process.
        """
        digest = hashlib.sha256(token).digest()
        entry = self._entries.get(digest, _NOBODY)
        return entry.caller if hmac.compare_digest(entry.digest, digest) else None

    def problems(self) -> list[str]:
        if self._problem is None:
            return []
        return [f"the token file is not read, its former tokens are in force: {self._problem}"]

    async def refresh(self) -> None:
        """Read the file if it is another than the one in force."""
        try:
            found = await asyncio.to_thread(_read, self._path, self._version)
        except (OSError, TokenFileError) as error:
            problem = _reason(error)
            if problem != self._problem:
                _log.error("the token file is not read", path=str(self._path), error=problem)
            self._problem = problem
            return
        self._take(found)

    def _take(self, found: tuple[_Version, dict[bytes, _Entry]] | None) -> None:
        self._problem = None
        self._metrics.credentials_read.set_to_current_time()
        if found is not None:
            self._version, self._entries = found
            _log.info("the token file was read", tokens=len(self._entries))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            await self.refresh()


def _version(descriptor: int) -> _Version:
    status = os.fstat(descriptor)
    return _Version(status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path, known: _Version | None) -> tuple[_Version, dict[bytes, _Entry]] | None:
    """The file's version and entries; None where the version is the known one."""
    # Not to wait for a writer, should it be a pipe.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        version = _version(file.fileno())
        if version == known:
            return None
        content = file.read(FILE_MAX_BYTES + 1)
        if _version(file.fileno()) != version:
            raise TokenFileError("it is being written")
    return version, parse_tokens(content)


def parse_tokens(content: bytes) -> dict[bytes, _Entry]:
    """The entries of a file's content, by hash; raises `TokenFileError`."""
    if len(content) > FILE_MAX_BYTES:
        raise TokenFileError(f"expected at most {FILE_MAX_BYTES} bytes")
    try:
        # An object is a tuple of its members: a name that is there twice is seen.
        members = json.loads(content.decode(), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        # Where a decoder's text ends, the content begins.
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise TokenFileError(f"expected JSON in UTF-8{place}") from None
    if not isinstance(members, tuple):
        raise TokenFileError("expected an object")
    entries: dict[bytes, _Entry] = {}
    for number, (name, namespaces) in enumerate(members, 1):
        if not _HASH.fullmatch(name):
            raise TokenFileError(f"entry {number}: expected 64 digits of 0-9 a-f, a SHA-256")
        digest = bytes.fromhex(name)
        if digest in entries:
            raise TokenFileError(f"entry {number}: its token is there already")
        if not _are_namespaces(namespaces):
            raise TokenFileError(f"entry {number}: expected an array of namespaces")
        # Not the hash itself: it tells who holds a token which one it is.
        key = f"token:{hashlib.blake2b(digest, digest_size=8).hexdigest()}"
        entries[digest] = _Entry(digest, Caller(frozenset(namespaces), key))
    return entries


def _are_namespaces(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, str) and is_namespace(item) for item in value
    )


def _reason(error: Exception) -> str:
    """One line without the content of the file."""
    return (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
