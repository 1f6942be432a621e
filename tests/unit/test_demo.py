"""The demo of `dev`: executions that look like those of a platform at work."""

import asyncio
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import pairwise

from execution_events.bilingual import half
from execution_events.dev.demo import Demo
from execution_events.testing import RecordingPublisher

SPEED = 20
MINUTES = 10


async def test_ten_minutes_of_the_demo_look_like_life() -> None:
    async with RecordingPublisher() as publisher:
        with suppress(TimeoutError):
            async with asyncio.timeout(MINUTES * 60 / SPEED):
                await Demo(publisher, SPEED).run()
        events = publisher.events

    running: set[tuple[str, str]] = set()
    concurrency: list[int] = []
    ended: Counter[str] = Counter()
    elements: defaultdict[str, set[str]] = defaultdict(set)
    pulls: list[float] = []
    started = {}
    retried: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    failed: set[str] = set()
    # A cancellation at the end is none of the demo's.
    for event in (each for each in events if "Cancelled" not in each.reason):
        element = event.execution_id, event.elem_id
        elements[event.execution_id].add(event.elem_id)
        seconds = event.last_timestamp.timestamp() * SPEED
        match half(event.reason, "en"):
            case "ActionStart":
                running.add(element)
            case "PullImage":
                started[element] = seconds
            case "ImagePulled":
                pulls.append(seconds - started[element])
            case "ActionRetry":
                retried[element].append(seconds)
            case "SuccessfulFinish" | "ActionFailed" as end:
                running.discard(element)
                ended[end] += 1
                if end == "ActionFailed":
                    failed.add(event.execution_id)
        concurrency.append(len(running))

    assert sorted(concurrency)[len(concurrency) // 10] >= 3
    assert 0.01 <= ended["ActionFailed"] / ended.total() <= 0.04, ended
    assert 0.01 <= len(failed) / len(elements) <= 0.04, (failed, len(elements))
    assert max(map(len, elements.values())) == 30
    assert max(pulls) > 30
    delays = [b - a for times in retried.values() for a, b in pairwise(times)]
    assert min(delays) < 2 < max(delays)
