"""Bodies compressed piece by piece, in the memory of one piece."""

import zlib
from typing import Literal, Protocol

import cramjam

from execution_events.web.preferences import preferences

Encoding = Literal["zstd", "gzip"]

_ENCODINGS: tuple[Encoding, ...] = ("zstd", "gzip")

WORTH_BYTES = 1024
"""A body shorter than this is sent as it is."""

# Measured on lists: what a higher level saves does not pay for its time.
_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
_GZIP_FORMAT = 31
"""zlib's window of 2^15 bytes, with gzip's header and trailer."""


def choose_encoding(accept_encoding: str) -> Encoding | None:
    """The encoding that the caller prefers, zstd on a tie; None leaves the body as it is."""
    codings = dict(preferences(accept_encoding))
    others = codings.get("*", 0.0)
    best = max(_ENCODINGS, key=lambda encoding: codings.get(encoding, others))
    quality = codings.get(best, others)
    return best if quality > 0 and quality >= codings.get("identity", 0.0) else None


class Compressor(Protocol):
    """What `add` and then `end` return, joined, is the encoded body; without `end` none is."""

    def add(self, piece: bytes) -> bytes: ...

    def end(self) -> bytes: ...


def compressor(encoding: Encoding | None) -> Compressor:
    """A new compressor; None leaves the body as it is."""
    match encoding:
        case "gzip":
            return _Gzip()
        case "zstd":
            return _Zstd()
        case None:
            return _Plain()


class _Plain:
    def add(self, piece: bytes) -> bytes:
        return piece

    def end(self) -> bytes:
        return b""


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_FORMAT)

    def add(self, piece: bytes) -> bytes:
        return self._stream.compress(piece)

    def end(self) -> bytes:
        return self._stream.flush()


class _Zstd:
    def __init__(self) -> None:
        self._stream = cramjam.zstd.Compressor(_ZSTD_LEVEL)

    def add(self, piece: bytes) -> bytes:
        self._stream.compress(piece)
        return bytes(self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())
