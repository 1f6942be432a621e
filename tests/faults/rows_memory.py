"""Highly compressible records that are larger than a consumer's memory."""

import signal
from enum import Enum

from aiokafka import AIOKafkaProducer

from tests.faults import memory
from tests.faults.episode import PARTITIONS, Episode, NoFaultError, Row
from tests.faults.memory import MemoryLimit
from tests.faults.pace import Pace
from tests.faults.rows_log import accept, needs_accept, until_halted
from tests.faults.source import Source

_RECORDS = 350
_RECORD_BYTES = 900_000
"""Too large for an event: each record becomes a dead letter."""
_LIMIT = 250 * 10**6
"""Bytes of memory per consumer, fewer than those of the records."""
_STALL_LIMIT = 10
"""Seconds for which another partition may stall."""
_STORED_LIMIT = 60  # seconds
_RAISED_LIMIT = 2 * _RECORDS * _RECORD_BYTES
"""Bytes to which a batch may expand, once an operator has raised the limit."""
_BATCH_LIMIT = "EXECUTION_EVENTS_KAFKA_BATCH_LIMIT"


class _Variant(Enum):
    ONE_EACH = "one batch each"
    DELETED = "one batch, deleted by an operator"
    ALLOWED = "one batch, allowed by a raised limit"


async def _compressible(episode: Episode) -> None:
    variant = list(_Variant)[episode.seed % len(_Variant)]
    partition = episode.rng.randrange(PARTITIONS)
    episode.evidence["variant"] = f"{variant.value}, partition {partition}"
    async with (
        MemoryLimit(episode.consumers, _LIMIT) as limit,
        Pace(episode.database, lambda: episode.load.acknowledged) as pace,
    ):
        # So that they fetch all records at once.
        for consumer in episode.consumers:
            consumer.signal(signal.SIGSTOP)
        base = await _produce(episode, partition, together=variant is not _Variant.ONE_EACH)
        for consumer in episode.consumers:
            consumer.signal(signal.SIGCONT)
        if variant is _Variant.ONE_EACH:
            await _until_stored(episode, partition, base + _RECORDS)
        else:
            await until_halted(episode, {partition})
            await _require_reason(episode, partition, base)
        await episode.until_moving()
        stalls = pace.stalls()
    episode.evidence["peak in MB"] = round(limit.peak / 10**6)
    episode.evidence["stood still"] = stalls
    if limit.kills:
        episode.violations.append(
            f"consumers exceeded {_LIMIT // 10**6} MB {len(limit.kills)} times"
        )
    episode.violations += [
        f"partition {other} stalled for {seconds} s"
        for other, seconds in stalls.items()
        if other != partition and seconds > _STALL_LIMIT
    ]
    if variant is _Variant.DELETED:
        await _delete(episode, partition, base)
        await accept(episode)
    elif variant is _Variant.ALLOWED:
        for consumer in episode.consumers:
            if code := await consumer.stop():
                episode.violations.append(f"{consumer.name}: exit code {code} after SIGTERM")
            consumer.set(_BATCH_LIMIT, str(_RAISED_LIMIT))
        for consumer in episode.consumers:
            await consumer.start()


async def _produce(episode: Episode, partition: int, *, together: bool) -> int:
    """Produce the records, in one batch or in one each; return the first offset."""
    async with AIOKafkaProducer(
        bootstrap_servers=episode.topic.bootstrap_servers,
        acks="all",
        compression_type="zstd",
        max_batch_size=2 * _RECORDS * _RECORD_BYTES,
    ) as producer:
        first = None
        batch = None
        for number in range(_RECORDS):
            batch = batch or producer.create_batch()
            value = bytes([number % 8]) * _RECORD_BYTES
            if batch.append(key=b"hostile", value=value, timestamp=None) is None:
                raise NoFaultError(f"the batch holds only {number} records")
            if not together or number == _RECORDS - 1:
                sent = await producer.send_batch(batch, episode.topic.name, partition=partition)
                offset: int = (await sent).offset
                first = offset if first is None else first
                batch = None
    assert first is not None
    return first


async def _until_stored(episode: Episode, partition: int, end: int) -> None:
    async def stored() -> bool:
        return ((await episode.database.progress() or {}).get(partition) or 0) >= end

    try:
        await episode.until(stored, _STORED_LIMIT, "stored")
    except NoFaultError:
        found = (await episode.database.progress() or {}).get(partition)
        episode.violations.append(
            f"partition {partition} is stored up to {found} after {_STORED_LIMIT} s, not to {end}"
        )


async def _require_reason(episode: Episode, partition: int, base: int) -> None:
    """Check that `/readyz` names the batch's partition and offset, and all before it is stored."""
    answers = [await consumer.scrape("/readyz") for consumer in episode.consumers]
    if not any(f"partition {partition}" in answer and str(base) in answer for answer in answers):
        episode.violations.append(
            f"no reason names partition {partition} and offset {base}: {answers}"
        )
    found = (await episode.database.progress() or {}).get(partition)
    if found != base:
        episode.violations.append(f"partition {partition} is stored up to {found}, not to {base}")


async def _delete(episode: Episode, partition: int, base: int) -> None:
    """Delete the log up to the end of the batch, as an operator would."""
    end = base + _RECORDS
    progress = await episode.database.progress() or {}
    await episode.note_log()
    await episode.topic.delete_records({partition: end})
    episode.lost[partition] = range(min(progress[partition], end), end)


def _missing(source: Source) -> str | None:
    return memory.missing() or needs_accept(source)


ROWS = (
    Row(
        "memory-limit",
        "350 records of 900 kB in 14 kB of log; consumers limited to 250 MB of memory",
        10,
        _compressible,
        # The default: more records than fit into memory.
        settings={"EXECUTION_EVENTS_BATCH_MAX_RECORDS": "10000"},
        missing=_missing,
    ),
)
