"""Receipt of one long list at full speed or slowly."""

import asyncio
import hashlib
import socket
import time
from typing import NamedTuple

from tests.benchmarks.load import Head, Request

_BUFFER = 64 * 1024
"""Bytes of the process's and the socket's buffer: small, so that a slow client is slow."""
_TIMEOUT = 280
"""Seconds for the whole list."""


class Received(NamedTuple):
    """Size and digest of a body; `seconds` until its last byte."""

    size: int
    sha256: str
    seconds: float


async def receive(address: str, path: str, rate: float | None = None) -> Received:
    """Get a list at no more than `rate` bytes a second.

    Raises `ValueError` for a status other than 200 and `IncompleteReadError` for a truncated body.
    """
    host, _, port = address.removeprefix("http://").rpartition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    connection.setblocking(False)
    async with asyncio.timeout(_TIMEOUT):
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=connection, limit=_BUFFER)
        try:
            begun = time.monotonic()
            writer.write(Request(path).head(f"{host}:{port}"))
            head = Head.of((await reader.readuntil(b"\r\n\r\n"))[:-4])
            if head.status != 200:
                raise ValueError(f"{path}: status {head.status}")
            digest, size = hashlib.sha256(), 0
            body = _Body(reader, head)
            while piece := await body.read():
                digest.update(piece)
                size += len(piece)
                if rate is not None:
                    await asyncio.sleep(begun + size / rate - time.monotonic())
            return Received(size, digest.hexdigest(), time.monotonic() - begun)
        finally:
            writer.close()


class _Body:
    """The body after a head, in pieces of at most `_BUFFER` bytes."""

    def __init__(self, reader: asyncio.StreamReader, head: Head) -> None:
        self._reader = reader
        self._chunked = head.headers.get("transfer-encoding") == "chunked"
        self._left = 0 if self._chunked else head.length

    async def read(self) -> bytes:
        """Return the next piece, empty at the end."""
        if self._chunked and not self._left:
            self._left = int(await self._reader.readline(), 16)
            if not self._left:
                await self._reader.readexactly(2)
                return b""
        if not self._left:
            return b""
        piece = await self._reader.read(min(self._left, _BUFFER))
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(piece)
        if self._chunked and not self._left:
            await self._reader.readexactly(2)
        return piece
