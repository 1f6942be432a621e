"""Decoders of compressed batches, with a limit on their expanded size.

aiokafka expands a whole batch at once, in memory: 9 kB of zstd can expand to 300 MB. It finds its
decoders in its record modules, one for each version of the record format; they are replaced there.
"""

import struct
import sys
import zlib
from types import ModuleType

import cramjam
from aiokafka.errors import KafkaError

_MIB = 1024 * 1024
_RETAINED_BUFFER = 4 * _MIB
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP = zlib.MAX_WBITS | 16


class BatchTooLargeError(KafkaError):  # type: ignore[misc]
    """Halt the partition: its batch expands to more than the limit."""


class Decoders:
    """Decoders that raise `BatchTooLargeError` for a batch that expands beyond `limit` bytes.

    `expanded` counts the bytes returned so far.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray(_MIB)
        self.expanded = 0

    def install(self) -> "Decoders":
        """Replace aiokafka's decoders, for all clients of this process."""
        # The compiled modules, or those in Python if they are not compiled.
        for name, module in list(sys.modules.items()):
            if name.startswith("aiokafka.record."):
                for codec in ("gzip", "snappy", "lz4", "zstd"):
                    if hasattr(module, f"{codec}_decode"):
                        setattr(module, f"{codec}_decode", getattr(self, codec))
        return self

    def gzip(self, payload: bytes) -> bytes:
        """Expand the members of a gzip file."""
        parts: list[bytes] = []
        size = 0
        left = bytes(payload)
        while left:
            decoder = zlib.decompressobj(_GZIP)
            parts.append(decoder.decompress(left, self._limit + 1 - size))
            size += len(parts[-1])
            if size > self._limit:
                raise self._too_large()
            if not decoder.eof:
                raise zlib.error("incomplete gzip stream")
            left = decoder.unused_data
        return self._counted(b"".join(parts))

    def snappy(self, payload: bytes) -> bytes:
        """Expand one block, or a stream of blocks as written by Java's xerial library."""
        data = memoryview(payload)
        if bytes(data[: len(_XERIAL_MAGIC)]) != _XERIAL_MAGIC:
            blocks = [data]
        else:
            blocks = []
            position = _XERIAL_HEADER
            while position < len(data):
                [length] = struct.unpack_from("!i", data, position)
                position += 4
                blocks.append(data[position : position + length])
                position += length
        size = sum(cramjam.snappy.decompress_raw_len(block) for block in blocks)
        if size > self._limit:
            raise self._too_large(size)
        return self._counted(
            b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
        )

    def lz4(self, payload: bytes) -> bytes:
        """Expand an LZ4 frame."""
        return self._expand_into(cramjam.lz4, payload, None)

    def zstd(self, payload: bytes) -> bytes:
        """Expand a Zstandard frame."""
        size = zstd_content_size(payload)
        if size is not None and size > self._limit:
            raise self._too_large(size)
        return self._expand_into(cramjam.zstd, payload, size)

    def _expand_into(self, codec: ModuleType, payload: bytes, size: int | None) -> bytes:
        if size is not None and size > len(self._buffer):
            # A frame longer than its header says is damaged, and fails.
            self._buffer = bytearray(size)
        while True:
            try:
                length = codec.decompress_into(payload, self._buffer)
                break
            except cramjam.DecompressionError as error:
                # The library raises one error for a full buffer and for damaged data. A larger
                # buffer tells them apart, except for a damaged frame without a size.
                if size is not None:
                    raise
                if len(self._buffer) >= self._limit:
                    raise self._too_large(cause=error) from error
                self._buffer = bytearray(min(4 * len(self._buffer), self._limit))
        data = bytes(memoryview(self._buffer)[:length])
        if len(self._buffer) > _RETAINED_BUFFER:
            self._buffer = bytearray(_MIB)
        return self._counted(data)

    def _counted(self, data: bytes) -> bytes:
        self.expanded += len(data)
        return data

    def _too_large(
        self, size: int | None = None, cause: Exception | None = None
    ) -> BatchTooLargeError:
        expanded = "more than the limit" if size is None else f"{size} bytes"
        detail = "" if cause is None else f" ({cause})"
        return BatchTooLargeError(
            f"it expands to {expanded}; KAFKA_BATCH_LIMIT is {self._limit} bytes{detail}"
        )


def zstd_content_size(payload: bytes) -> int | None:
    """Return the expanded size in a Zstandard frame's header; None if the header has none.

    Layout: RFC 8878, section 3.1.1.1.
    """
    header = bytes(memoryview(payload)[:18])
    if len(header) < 18 or not header.startswith(_ZSTD_MAGIC):
        return None
    descriptor = header[4]
    single_segment = bool(descriptor & 0x20)
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        return None
    begin = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(header[begin : begin + width], "little")
    return size + 256 if width == 2 else size
