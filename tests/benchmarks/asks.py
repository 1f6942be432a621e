"""What the lists' load clients ask for, and what must come back."""

import hashlib
import random
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import httpx
import msgspec

from execution_events.events import Occurrence
from tests.benchmarks.dataset import Dataset, body, path
from tests.benchmarks.load import BEGIN, Ask

PAGE = 100
"""Events of a page."""
HOT = 8
"""Executions whose lists are asked for again and again."""
DEPTH = 0.9
"""Of the long execution: where the deep pages begin."""
_WAYS = 20_000
"""Ways to ask for the same, so that a page is read from the database each time."""
_SEED = 20180820
_TIMEOUT = 60
"""Seconds."""


class Workload(NamedTuple):
    """The requests of each kind. Each list is sent in turn, and then again from its beginning."""

    lists: list[Ask]
    """Of all executions but the long one and the hot ones, in random order."""
    static: list[Ask]
    """One of them."""
    hot: list[Ask]
    unchanged: list[Ask]
    """The hot ones, by whoever has them already."""
    gzip: list[Ask]
    zstd: list[Ask]
    pages: list[Ask]
    """The first pages of all executions but the long one, in random order."""
    first_short: list[Ask]
    first_long: list[Ask]
    deep: list[Ask]
    """The long execution's page at `DEPTH`."""
    all_deep: list[Ask]
    """All its pages from there on."""
    whole: Ask
    """The long execution's whole list."""
    seed: bytes
    """The body of the static one."""


def ask(target: str, events: Sequence[Occurrence]) -> Ask:
    """Ask for `events`."""
    return of_body(target, body(events))


def of_body(target: str, content: bytes) -> Ask:
    """Ask for bytes."""
    begin = content[:BEGIN].decode(errors="ignore")
    digest = hashlib.sha256(content).hexdigest()
    return Ask(target, length=len(content), begin=begin, sha256=digest)


async def workload(address: str, dataset: Dataset) -> Workload:
    """Everything that is asked of a reader; it is asked for tags and markers.

    The dataset has more than `HOT` executions. Raises `ValueError` for a page, on the way to the
    deep ones, that is not the right one.
    """
    numbers = list(range(dataset.executions))
    random.Random(_SEED).shuffle(numbers)
    lists, pages = [], []
    for number in numbers:
        events = dataset.listed(number)
        lists.append(ask(path(number), events))
        pages.append(ask(f"{path(number)}?limit={PAGE}", events[:PAGE]))
    long = dataset.listed(dataset.executions)
    async with httpx.AsyncClient(base_url=address, timeout=_TIMEOUT) as client:
        hot, lists = lists[:HOT], lists[HOT:]
        tags = [(await client.get(each.path)).headers["ETag"] for each in hot]
        walked = await _walk(client, f"{path(dataset.executions)}?limit={PAGE}", long)
    deep = walked[int(len(walked) * DEPTH) :]
    return Workload(
        lists=lists,
        static=lists[:1],
        hot=hot,
        unchanged=[
            Ask(each.path, status=304, headers={"If-None-Match": tag}, length=0)
            for each, tag in zip(hot, tags, strict=True)
        ],
        gzip=[_encoded(each, "gzip") for each in hot],
        zstd=[_encoded(each, "zstd") for each in hot],
        pages=pages,
        first_short=uncached(pages[:1]),
        first_long=uncached(walked[:1]),
        deep=uncached(deep[:1]),
        all_deep=uncached(deep),
        whole=ask(path(dataset.executions), long),
        seed=body(dataset.listed(numbers[HOT])),
    )


def uncached(asks: Sequence[Ask]) -> list[Ask]:
    """The same requests in turn, each with headers of its own, that mean the same."""
    others = (f"application/json, text/{number}" for number in range(_WAYS))
    return [
        msgspec.structs.replace(each, headers={"Accept": accept})
        for each, accept in zip(cycle(asks), others, strict=False)
    ]


def _encoded(each: Ask, encoding: str) -> Ask:
    return Ask(each.path, headers={"Accept-Encoding": encoding}, sha256=each.sha256)


async def _walk(client: httpx.AsyncClient, first: str, events: Sequence[Occurrence]) -> list[Ask]:
    """Go from page to page as a client would."""
    asks: list[Ask] = []
    target: str | None = first
    while target is not None:
        start = PAGE * len(asks)
        expected = body(events[start : start + PAGE])
        answer = await client.get(target)
        if answer.content != expected:
            raise ValueError(f"{target}: another page than that from event {start} on")
        asks.append(of_body(target, expected))
        marker = answer.headers.get("X-Next-Marker")
        target = None if marker is None else f"{first}&marker={marker}"
    if PAGE * len(asks) < len(events):
        raise ValueError(f"{first}: the last page is number {len(asks)}")
    return asks
