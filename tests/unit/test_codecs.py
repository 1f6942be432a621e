"""Decoders of compressed batches, up to their limit, against aiokafka's encoders."""

import os
import zlib

import aiokafka.codec
import cramjam
import pytest
from aiokafka.record import default_records

from execution_events.kafka.codecs import BatchTooLargeError, Decoders, zstd_content_size

LIMIT = 8 * 2**20
CODECS = ("gzip", "snappy", "lz4", "zstd")


def encode(codec: str, data: bytes) -> bytes:
    encoded: bytes = getattr(aiokafka.codec, f"{codec}_encode")(data)
    return encoded


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 255, 300, 70_000, 2**20, 2**20 + 1, LIMIT])
def test_a_batch_within_the_limit_is_expanded(codec: str, size: int) -> None:
    decoders = Decoders(LIMIT)
    data = (os.urandom(min(size, 1000)) + b"abc" * size)[:size]
    assert getattr(decoders, codec)(encode(codec, data)) == data
    assert decoders.expanded == size


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_beyond_the_limit_is_refused(codec: str) -> None:
    decoders = Decoders(LIMIT)
    with pytest.raises(BatchTooLargeError, match=f"KAFKA_BATCH_LIMIT is {LIMIT} bytes"):
        getattr(decoders, codec)(encode(codec, bytes(LIMIT + 1)))
    assert decoders.expanded == 0


def test_a_refusal_names_the_size_in_the_header() -> None:
    with pytest.raises(BatchTooLargeError, match="expands to 300000000 bytes"):
        Decoders(LIMIT).zstd(encode("zstd", bytes(300_000_000)))


def test_frames_without_a_size_are_expanded_up_to_the_limit() -> None:
    """Java's producers write such frames."""
    for size, fits in ((LIMIT, True), (LIMIT + 1, False)):
        compressor = cramjam.zstd.Compressor()
        compressor.compress(bytes(size))
        frame = bytes(compressor.finish())
        assert zstd_content_size(frame) is None
        if fits:
            assert Decoders(LIMIT).zstd(frame) == bytes(size)
        else:
            with pytest.raises(BatchTooLargeError, match="expands to more"):
                Decoders(LIMIT).zstd(frame)


def test_a_raw_snappy_block_is_expanded() -> None:
    data = b"abc" * 1000
    assert Decoders(LIMIT).snappy(bytes(cramjam.snappy.compress_raw(data))) == data


def test_members_of_a_gzip_file_are_joined() -> None:
    members = encode("gzip", bytes(LIMIT // 2)) + encode("gzip", bytes(LIMIT // 2))
    assert Decoders(LIMIT).gzip(members) == bytes(LIMIT)
    with pytest.raises(BatchTooLargeError):
        Decoders(LIMIT - 1).gzip(members)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "zstd"])
def test_a_damaged_batch_is_not_reported_as_too_large(codec: str) -> None:
    whole = encode(codec, os.urandom(5000))
    with pytest.raises((zlib.error, cramjam.DecompressionError)):
        getattr(Decoders(LIMIT), codec)(whole[:-1000])


def test_installed_decoders_are_used_by_aiokafka(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = default_records.DefaultRecordBatchBuilder(
        magic=2,
        compression_type=4,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**30,
    )
    builder.append(0, timestamp=None, key=None, value=bytes(LIMIT), headers=[])
    batch = bytes(builder.build())
    Decoders(LIMIT - 1).install()
    try:
        with pytest.raises(BatchTooLargeError):
            list(default_records.DefaultRecordBatch(batch))
    finally:
        Decoders(2**31).install()
