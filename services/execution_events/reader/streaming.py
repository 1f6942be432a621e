"""A list that is sent while it is read, in bounded memory and time."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.reader.rendering import Rendering
from execution_events.store.read.events import Stream
from execution_events.web.compression import Encoding, compressor

_log = Logger(__name__)

FETCHED_WHOLE = 256
"""Events up to which a whole list is fetched at once; longer ones are streamed."""
_CHUNK_BYTES = 64 * 1024


class StreamLimits(NamedTuple):
    """How long a stream may hold its snapshot and its connection."""

    chunk_seconds: float = 20
    """Until the caller has taken a chunk of some 64 KiB."""
    total_seconds: float = 300


class StreamedList(Response):
    """All events of a stream, as one answer of one snapshot.

    What cannot be finished is cut without its last chunk, so that no client takes it for whole:
    when the database fails, when the caller stops reading, and when the time is up.
    """

    def __init__(
        self,
        stream: Callable[[], AbstractAsyncContextManager[Stream]],
        tag: Callable[[str], str],
        headers: dict[str, str],
        rendering: Rendering,
        encoding: Encoding | None,
        limits: StreamLimits,
    ) -> None:
        """`tag` makes the ETag of the stream's revisions."""
        self._stream = stream
        self._tag = tag
        self._fields = headers | ({} if encoding is None else {"Content-Encoding": encoding})
        self._rendering = rendering
        self._compressor = compressor(encoding)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The server says that a caller has gone here alone; it takes what is sent all the same.
        gone = asyncio.create_task(until_gone(receive))
        started = False

        async def send_started(message: Message) -> None:
            nonlocal started
            started = True
            async with asyncio.timeout(self._limits.chunk_seconds):
                await send(message)

        try:
            async with asyncio.timeout(self._limits.total_seconds), self._stream() as stream:
                await send_started(self._head(stream.revisions))
                if scope["method"] == "HEAD" or await self._body(stream, gone, send_started):
                    await send_started(body_message(b"", more=False))
        except (RetryableError, TimeoutError) as error:
            if not started:
                raise
            # The server closes a connection whose answer is not finished.
            _log.warning("a streamed list was cut", reason=str(error) or "time-out")
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    async def _body(self, stream: Stream, gone: asyncio.Task[None], send: Send) -> bool:
        """Send all but the last chunk; whether the caller was there until then."""
        chunk = bytearray()
        async for events in stream.batches:
            chunk += self._compressor.add(self._rendering.add(events))
            if gone.done():
                return False
            if len(chunk) >= _CHUNK_BYTES:
                await send(body_message(bytes(chunk), more=True))
                chunk.clear()
        chunk += self._compressor.add(self._rendering.end()) + self._compressor.end()
        await send(body_message(bytes(chunk), more=True))
        return True

    def _head(self, revisions: str) -> Message:
        return head_message(self._fields | {"ETag": self._tag(revisions)})


def head_message(fields: Mapping[str, str]) -> Message:
    """The head of an answer that goes well, as ASGI has it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def body_message(content: bytes, *, more: bool) -> Message:
    """A piece of a body, as ASGI has it."""
    return {"type": "http.response.body", "body": content, "more_body": more}


async def until_gone(receive: Receive) -> None:
    """Return once the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
