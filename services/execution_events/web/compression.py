"""Incremental compression of bodies, in the memory of one chunk."""

import zlib
from typing import Final, Protocol

import cramjam

from execution_events.web.negotiation import Encoding

COMPRESSION_MIN_BYTES: Final = 1024
"""Shorter bodies are sent uncompressed."""

# Measured on lists: a higher level costs more time than its bytes save.
_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
_GZIP_FORMAT = 31
"""zlib's window of 2^15 bytes, with gzip's header and trailer."""


class Compressor(Protocol):
    """The joined results of every `add` and one final `end` are the encoded body."""

    def add(self, chunk: bytes) -> bytes: ...

    def end(self) -> bytes: ...


def compressor(encoding: Encoding | None) -> Compressor:
    """Return a new compressor; for None, one that returns its input."""
    match encoding:
        case "gzip":
            return _Gzip()
        case "zstd":
            return _Zstd()
        case None:
            return _Uncompressed()


class _Uncompressed:
    def add(self, chunk: bytes) -> bytes:
        return chunk

    def end(self) -> bytes:
        return b""


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_FORMAT)

    def add(self, chunk: bytes) -> bytes:
        return self._stream.compress(chunk)

    def end(self) -> bytes:
        return self._stream.flush()


class _Zstd:
    def __init__(self) -> None:
        self._stream = cramjam.zstd.Compressor(_ZSTD_LEVEL)

    def add(self, chunk: bytes) -> bytes:
        self._stream.compress(chunk)
        return bytes(self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())
