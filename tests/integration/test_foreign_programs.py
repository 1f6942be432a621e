"""Producers in Go, Java and JavaScript, written from `schemas/` alone; see `tests/foreign/`."""

import json
import re
from collections import Counter
from typing import Any

import pytest

from execution_events.settings import Settings
from tests.foreign.programs import PROGRAMS, Program
from tests.support import golden
from tests.support.configuration import configured
from tests.support.consumers import consuming, until_stored
from tests.support.golden import SCHEMAS
from tests.support.occurrences import Fetch
from tests.support.published import log
from tests.support.topics import make_topic

# Building downloads compilers and libraries.
pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]

DOCUMENT = json.loads((SCHEMAS / "asyncapi.json").read_text(encoding="utf-8"))
SETTINGS = DOCUMENT["operations"]["reportOccurrences"]["x-producer-settings"]
NAMES = golden.names()
KEY_PARTITIONS = golden.key_partitions()
EVENT = {**NAMES[0].record, "involvedObject": {"name": "o"}}
KEYS = [{**EVENT, "executionId": each.key.decode()} for each in KEY_PARTITIONS]

each_program = pytest.mark.parametrize(
    "program", [pytest.param(each, id=each.key) for each in PROGRAMS]
)


def lines(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(event, ensure_ascii=False).encode() for event in events]


async def topic(settings: Settings, partitions: int) -> Settings:
    """Create a topic with `partitions`; return settings for it."""
    settings = configured(settings, topic=f"{settings.kafka.topic}-{partitions}")
    await make_topic(settings, partitions)
    return settings


async def placed(settings: Settings) -> dict[bytes, int]:
    """Return the partition of each key in the topic."""
    return {record.key: record.partition for record in await log(settings)}


def test_the_programs_have_the_settings_of_the_document() -> None:
    assert SETTINGS.keys() == {program.key for program in PROGRAMS} | {"librdkafka"}
    for program in PROGRAMS:
        text = re.sub(r"\s+", " ", program.source.read_text(encoding="utf-8"))
        for name, value in SETTINGS[program.key].items():
            assert f"{name}: {value}" in text or f'"{name}", "{value}"' in text


@each_program
@pytest.mark.parametrize("partitions", [6, 12])
async def test_names_and_partitions_are_those_of_the_golden_files(
    program: Program, partitions: int, settings: Settings
) -> None:
    settings = await topic(settings, partitions)
    named = [case.record for case in NAMES]
    await program.publish(settings, "worker-1", lines([*named, *KEYS]))
    found = {record.sequence: record for record in await log(settings)}
    assert sorted(found) == list(range(1, len(named) + len(KEYS) + 1))
    names = [found[number].name for number in range(1, len(named) + 1)]
    assert names == [case.name for case in NAMES]
    expected = {each.key: each.partitions[partitions] for each in KEY_PARTITIONS}
    assert await placed(settings) == expected


@pytest.mark.parametrize("partitions", [6, 12])
@pytest.mark.parametrize("key", ["kafka-go", "kafkajs"])
async def test_another_partitioner_of_a_client_is_wrong(
    key: str, partitions: int, settings: Settings
) -> None:
    """`Hash` of kafka-go and `LegacyPartitioner` of kafkajs."""
    [program] = [each for each in PROGRAMS if each.key == key]
    settings = await topic(settings, partitions)
    await program.publish(settings, "worker-1", lines(KEYS), "wrong")
    found = await placed(settings)
    wrong = [each for each in KEY_PARTITIONS if found[each.key] != each.partitions[partitions]]
    assert len(wrong) >= len(KEY_PARTITIONS) - 1


@each_program
async def test_events_published_twice_are_counted_exactly(
    program: Program, settings: Settings, fetch: Fetch
) -> None:
    """Twice as the same writer, which counts once, and then as another, which counts again."""
    seed = [json.loads(case.record.value or b"") for case in golden.load("seed.json")]
    for event in seed:
        del event["metadata"]["name"]
    recurrences = [
        {**event, "count": count, "firstTimestamp": later, "lastTimestamp": later}
        for event in seed
        for count, later in ((1, "2018-08-20T06:42:00Z"), (3, "2018-08-20T06:43:00Z"))
    ]
    events = lines([*seed, *recurrences])
    async with consuming(settings):
        for source in ("worker-1", "worker-1", "worker-2"):
            await program.publish(settings, source, events)
        await until_stored(settings)
    rows = await fetch(
        "SELECT name, reason, elem_id, count, first_timestamp::text, last_timestamp::text"
        " FROM ops.events_v1"
    )
    assert len({row["name"] for row in rows}) == len(rows) == len(seed)
    assert NAMES[0].name in {row["name"] for row in rows}
    assert Counter(tuple(row)[1:] for row in rows) == Counter(
        (
            *(event["reason"], event["elemId"], 2 * (1 + 1 + 3)),
            *("2018-08-20 06:41:44+00", "2018-08-20 06:43:00+00"),
        )
        for event in seed
    )
    assert await fetch("SELECT FROM dead_letter") == []
