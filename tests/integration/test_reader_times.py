"""The precision of timestamps in lists, NDJSON and watches."""

import json

import pytest

from execution_events.events import TIMESTAMP_MAX, TIMESTAMP_MIN
from tests.support.readers import EVENTS, Reader, at, named
from tests.support.records import Log
from tests.support.watching import Watcher, keyed

MICRO = {"times": "micro"}


@pytest.mark.parametrize("events", [3, 256, 257, 700])
async def test_every_form_of_a_list_has_the_chosen_precision(
    reader: Reader, written: Log, events: int
) -> None:
    await written.add(
        *(
            named(f"n{number:03}", number, last_timestamp=at(number + 0.000001 * number))
            for number in range(events)
        )
    )
    expected = [
        (f"{at(number):%FT%T}.000000Z", f"{at(number):%FT%T}.{number:06}Z")
        for number in range(events)
    ]
    listed = await reader.events(params=MICRO)
    assert [(event["firstTimestamp"], event["lastTimestamp"]) for event in listed] == expected
    lines = await reader.get(EVENTS, params=MICRO, headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line) for line in lines.content.splitlines()] == listed
    page = await reader.get(EVENTS, params=MICRO | {"limit": 2, "lang": "en"})
    assert [event["lastTimestamp"] for event in page.json()] == [last for _, last in expected[:2]]
    following = await reader.get(EVENTS + page.headers["Link"].split(">")[0][1:])
    assert following.json()[0]["lastTimestamp"] == expected[2][1]
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS, MICRO) as watch:
        await watch.until(keyed(listed))


async def test_a_watch_sends_changes_in_the_chosen_precision(reader: Reader, written: Log) -> None:
    await written.add(named("a", 1.25))
    watcher, precise = Watcher(), Watcher()
    async with (
        watcher.watching(reader.api, EVENTS) as watch,
        precise.watching(reader.api, EVENTS, MICRO) as precise_watch,
    ):
        await watch.next(2)
        await precise_watch.next(2)
        await written.add(named("a", 2.000001), named("b", 3))
        await watch.until(keyed(await reader.events()))
        await precise_watch.until(keyed(await reader.events(params=MICRO)))
    first, second = precise.events.values()
    assert first["lastTimestamp"] == "2026-01-01T00:00:02.000001Z"
    assert second["lastTimestamp"] == "2026-01-01T00:00:03.000000Z"


async def test_the_default_is_the_stored_text(reader: Reader, written: Log) -> None:
    await written.add(named("a", 1.25))
    responses = [
        await reader.get(EVENTS, params=params)
        for params in ({}, {"times": "second"}, MICRO, {}, {"times": "second"}, MICRO)
    ]
    default, second, micro, *cached = responses
    assert default.content == second.content
    assert default.headers["ETag"] == second.headers["ETag"] != micro.headers["ETag"]
    assert default.json()[0]["lastTimestamp"] == "2026-01-01T00:00:01Z"
    assert micro.json()[0]["lastTimestamp"] == "2026-01-01T00:00:01.250000Z"
    assert [response.content for response in cached] == [r.content for r in responses[:3]]


async def test_an_id_belongs_to_its_precision(reader: Reader, written: Log) -> None:
    await written.add(named("a"))
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS) as watch:
        await watch.next(2)
    async with watcher.watching(reader.api, EVENTS, MICRO) as watch:
        assert [message.kind for message in await watch.next(2)] == ["reset", "message"]


async def test_the_extreme_times_are_shown(reader: Reader, written: Log) -> None:
    await written.add(named("a", first_timestamp=TIMESTAMP_MIN, last_timestamp=TIMESTAMP_MAX))
    [event] = await reader.events(params=MICRO)
    assert event["firstTimestamp"] == "1970-01-01T00:00:00.000000Z"
    assert event["lastTimestamp"] == "9999-12-31T23:59:59.999999Z"
    watcher = Watcher()
    async with watcher.watching(reader.api, EVENTS, MICRO) as watch:
        await watch.next(2)
        await written.add(named("a", count=2))
        [changed] = await watch.next()
    assert changed.data["lastTimestamp"] == "9999-12-31T23:59:59.999999Z"
