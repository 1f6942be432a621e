"""A watch over HTTP: connected again after each failure, ended by a refusal."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import msgspec
from httpx_sse import aconnect_sse

from execution_events.backoff import backoff
from execution_events.errors import MisconfiguredError, RetryableError
from execution_events.tail.watched_list import Message

Parameters = Sequence[tuple[str, str]]
"""Query parameters of the API, by name and value."""

_FIRST_DELAY, _MAX_DELAY = 1.0, 15.0
"""Seconds; jitter halves them at most."""
_TIMEOUT = httpx.Timeout(10, read=45)
"""Seconds. The reader sends a comment every 15 seconds."""
_TEMPORARY = frozenset({408, 425, 429})


class Connected(NamedTuple):
    """The reader has accepted the watch."""


class Disconnected(NamedTuple):
    """The watch has ended, or could not begin: `failures` times since it was last connected."""

    reason: str
    failures: int


Signal = Connected | Disconnected | Message


class ReaderClient:
    """Requests to one reader about one execution."""

    def __init__(
        self, client: httpx.AsyncClient, execution_id: str, token_file: Path | None
    ) -> None:
        self._client = client
        self._path = f"v1/executions/{quote(execution_id, safe='')}/events"
        self._token_file = token_file

    @classmethod
    @asynccontextmanager
    async def open(
        cls, reader: str, execution_id: str, token_file: Path | None
    ) -> AsyncIterator["ReaderClient"]:
        """Open a client of the reader at the URL `reader`."""
        async with httpx.AsyncClient(base_url=reader, timeout=_TIMEOUT) as client:
            yield cls(client, execution_id, token_file)

    async def watch(self, parameters: Parameters) -> AsyncGenerator[Signal, None]:
        """Yield the signals of a watch, which has no end of its own.

        The watch resumes from the last id. Raises `MisconfiguredError` if the reader refuses it.
        """
        last_id, failures = "", 0
        while True:
            headers = self._headers() | ({"Last-Event-ID": last_id} if last_id else {})
            reason, is_connected, retry_after = "connection closed", False, 0.0
            try:
                async with aconnect_sse(
                    self._client, "GET", self._path, params=list(parameters), headers=headers
                ) as source:
                    await _require_stream(source.response)
                    is_connected, failures = True, 0
                    yield Connected()
                    async for message in source.aiter_sse():
                        # The decoder repeats the last id with each message.
                        has_id = message.id not in ("", last_id)
                        if has_id:
                            last_id = message.id
                        if message.data:
                            yield Message(message.event, message.data, has_id)
            except _UnavailableError as error:
                reason, retry_after = str(error), error.retry_after
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            if not is_connected:
                failures += 1
            yield Disconnected(reason, failures)
            delay = backoff(max(failures - 1, 0), _FIRST_DELAY, _MAX_DELAY)
            await asyncio.sleep(max(delay, min(retry_after, _MAX_DELAY)))

    async def answers(self, parameters: Parameters) -> bool:
        """Return whether the reader answers a list now, and so can see the database."""
        try:
            response = await self._client.get(
                self._path, params=[*parameters, ("limit", "1")], headers=self._headers()
            )
        except httpx.TransportError:
            return False
        return response.status_code == 200

    def _headers(self) -> dict[str, str]:
        """Return the headers with the token as it is in its file now."""
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "expected ASCII"
            raise MisconfiguredError(f"--token-file {self._token_file}: {reason}") from error
        if not token or not token.isprintable():
            raise MisconfiguredError(f"--token-file {self._token_file}: expected one token")
        return {"Authorization": f"Bearer {token}"}


class _UnavailableError(RetryableError):
    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class _ErrorBody(msgspec.Struct):
    error_msg: str


async def _require_stream(response: httpx.Response) -> None:
    """Raise `MisconfiguredError` for what a repetition cannot mend, else `_UnavailableError`."""
    status = response.status_code
    if status == 200:
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0] == "text/event-stream":
            return
        raise MisconfiguredError(
            f"--reader: expected the URL of a reader; it answered {content_type or 'no type'}"
        )
    await response.aread()
    text = f"reader answered {status}"
    try:
        text += f": {msgspec.json.decode(response.content, type=_ErrorBody).error_msg}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text += f" {response.reason_phrase}"
    if 300 <= status < 500 and status not in _TEMPORARY:
        raise MisconfiguredError(text)
    retry_after = response.headers.get("retry-after", "")
    raise _UnavailableError(text, float(retry_after) if retry_after.isdecimal() else 0)
