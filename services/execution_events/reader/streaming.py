"""Lists that are sent while they are read, in bounded memory and time."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from execution_events.errors import RetryableError
from execution_events.logs import Logger
from execution_events.reader.rendering import Rendering
from execution_events.store.read.events import Stream
from execution_events.web.compression import compressor
from execution_events.web.negotiation import Encoding

_log = Logger(__name__)

PAGE_MAX_EVENTS: Final = 256
"""A list without a limit is one page up to this length, and streamed beyond it."""
CHUNK_BYTES: Final = 64 * 1024
HEADERS: Final = {
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Accept-Encoding, Authorization, X-Auth-Token",
}
"""Headers of every list and watch."""


class StreamTimeouts(NamedTuple):
    """Limits on the time that a stream holds its snapshot and connection; seconds."""

    chunk: float = 20
    """Until the client has taken a chunk of about 64 KiB."""
    total: float = 300


class StreamedList(Response):
    """A list of any length, from one snapshot.

    If the database fails, the client stops reading, or time runs out, the connection is closed
    before the final chunk, so that no client takes a part for the whole.
    """

    def __init__(
        self,
        stream: Callable[[], AbstractAsyncContextManager[Stream]],
        tag: Callable[[str], str],
        headers: dict[str, str],
        rendering: Rendering,
        encoding: Encoding | None,
        timeouts: StreamTimeouts,
    ) -> None:
        """`tag` returns the entity tag of the stream's revisions."""
        self._stream = stream
        self._tag = tag
        self._fields = headers | ({} if encoding is None else {"Content-Encoding": encoding})
        self._rendering = rendering
        self._compressor = compressor(encoding)
        self._timeouts = timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Only `receive` reports a disconnect; `send` still succeeds.
        disconnected = asyncio.create_task(client_disconnected(receive))
        has_started = False

        async def send_in_time(message: Message) -> None:
            nonlocal has_started
            has_started = True
            async with asyncio.timeout(self._timeouts.chunk):
                await send(message)

        try:
            async with asyncio.timeout(self._timeouts.total), self._stream() as stream:
                await send_in_time(
                    response_start(self._fields | {"ETag": self._tag(stream.revisions)})
                )
                if scope["method"] == "HEAD" or await self._send_events(
                    stream, disconnected, send_in_time
                ):
                    await send_in_time(response_body(b"", more=False))
        except (RetryableError, TimeoutError) as error:
            if not has_started:
                raise
            # The server closes the connection of an incomplete response.
            _log.warning("stream_aborted", error=str(error) or "timeout")
        finally:
            disconnected.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disconnected

    async def _send_events(
        self, stream: Stream, disconnected: asyncio.Task[None], send: Send
    ) -> bool:
        """Send everything but the final chunk; return False if the client disconnected."""
        chunk = bytearray()
        async for bodies in stream.batches:
            chunk += self._compressor.add(self._rendering.add(bodies))
            if disconnected.done():
                return False
            if len(chunk) >= CHUNK_BYTES:
                await send(response_body(bytes(chunk), more=True))
                chunk.clear()
        chunk += self._compressor.add(self._rendering.end()) + self._compressor.end()
        await send(response_body(bytes(chunk), more=True))
        return True


def response_start(fields: Mapping[str, str]) -> Message:
    """Return the ASGI message that starts a 200 response."""
    headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def response_body(content: bytes, *, more: bool) -> Message:
    """Return the ASGI message for a part of a body."""
    return {"type": "http.response.body", "body": content, "more_body": more}


async def client_disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
