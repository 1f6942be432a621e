"""The golden records and partitions, a reference for producers in other languages."""

from binascii import crc32

import pytest
from aiokafka.partitioner import DefaultPartitioner, murmur2

from execution_events import wire
from tests.support import golden
from tests.support.golden import Golden, KeyPartition

PUBLISHED = golden.load("published.json")
KEY_PARTITIONS = golden.key_partitions()
NUMBERS = (6, 12)

each_record = pytest.mark.parametrize("case", [pytest.param(r, id=r.name) for r in PUBLISHED])
each_key = pytest.mark.parametrize(
    "case", [pytest.param(p, id=f"{p.key!r}") for p in KEY_PARTITIONS]
)


@each_record
def test_our_publisher_sends_these_bytes(case: Golden) -> None:
    assert case.occurrence is not None
    assert case.origin is not None
    trace = dict(case.record.headers).get("traceparent")
    headers = wire.encode_headers(
        case.origin.source, case.origin.sequence, trace.decode() if trace else None
    )
    assert wire.encode(case.occurrence) == (case.record.key, case.record.value)
    assert tuple(headers) == case.record.headers


def test_the_golden_records_cover_every_kind() -> None:
    values = [case.record.value or b"" for case in PUBLISHED]
    assert {"traceparent" in dict(case.record.headers) for case in PUBLISHED} == {True, False}
    assert any(not value.isascii() for value in values)
    assert any(rb"\n" in value for value in values)
    assert {case.origin.sequence for case in PUBLISHED if case.origin} >= {0, wire.SEQUENCE_MAX}
    names = {case.occurrence.name for case in PUBLISHED if case.occurrence}
    assert names & {case.name for case in golden.names()}
    assert {case.record.key for case in PUBLISHED} <= {each.key for each in KEY_PARTITIONS}


def test_headers_are_not_shared_between_callers() -> None:
    """A header added by one caller must not appear in the next record."""
    origin = wire.Origin("worker", 1)
    before = list(wire.encode_headers(origin.source, origin.sequence))
    wire.encode_headers(origin.source, origin.sequence).append(("added", b""))
    assert wire.encode_headers(origin.source, origin.sequence) == before


@each_key
def test_partitions_are_murmur2s(case: KeyPartition) -> None:
    assert case.hash == murmur2(case.key) & 0x7FFFFFFF
    assert case.partitions == {
        number: DefaultPartitioner()(case.key, list(range(number)), []) for number in NUMBERS
    }


def test_the_keys_cover_every_length_and_partition() -> None:
    lengths = {len(each.key) for each in KEY_PARTITIONS}
    assert {length % 4 for length in lengths} == {0, 1, 2, 3}
    assert {1, 128} <= lengths
    assert {each.partitions[6] for each in KEY_PARTITIONS} == set(range(6))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("mistake", ["sign", "absolute", "crc32"])
def test_common_mistakes_give_other_partitions(mistake: str, number: int) -> None:
    """The sign bit kept, or removed by negation; the default of librdkafka."""

    def wrong(key: bytes) -> int:
        unsigned: int = murmur2(key)
        signed = unsigned - 2**32 if unsigned >= 2**31 else unsigned
        return {"sign": unsigned, "absolute": abs(signed), "crc32": crc32(key)}[mistake] % number

    assert [p for p in KEY_PARTITIONS if wrong(p.key) != p.partitions[number]]
