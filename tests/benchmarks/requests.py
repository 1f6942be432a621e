"""Requests for lists and the answers that they must get."""

import hashlib
import random
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import httpx
import msgspec

from execution_events.events import Occurrence
from tests.benchmarks.dataset import Dataset, body, path
from tests.benchmarks.load import BEGIN, Request

PAGE = 100
"""Events of a page."""
HOT = 8
"""Executions whose lists are requested repeatedly."""
DEPTH = 0.9
"""Share of the long execution before the first deep page."""
_SPELLINGS = 20_000
"""Different headers with one meaning, so that each page is read from the database."""
_SEED = 20180820
_TIMEOUT = 60
"""Seconds."""


class RequestSets(NamedTuple):
    """Requests by kind. A client sends those of one list in turn and starts over at its end."""

    lists: list[Request]
    """All executions except the long one and the hot ones, in random order."""
    static: list[Request]
    """One of `lists`."""
    hot: list[Request]
    unchanged: list[Request]
    """The hot ones with the current tags."""
    gzip: list[Request]
    zstd: list[Request]
    pages: list[Request]
    """The first pages of all executions except the long one, in random order."""
    first_short: list[Request]
    first_long: list[Request]
    deep: list[Request]
    """The page of the long execution at `DEPTH`."""
    all_deep: list[Request]
    """The page at `DEPTH` and all after it."""
    whole: Request
    """The whole list of the long execution."""
    seed: bytes
    """The body of the answer to `static`."""


def of_events(target: str, events: Sequence[Occurrence]) -> Request:
    """Return a request that must be answered with `events`."""
    return of_body(target, body(events))


def of_body(target: str, content: bytes) -> Request:
    """Return a request that must be answered with these bytes."""
    begin = content[:BEGIN].decode(errors="ignore")
    digest = hashlib.sha256(content).hexdigest()
    return Request(target, length=len(content), begin=begin, sha256=digest)


async def request_sets(address: str, dataset: Dataset) -> RequestSets:
    """Return the requests for a dataset; fetch tags and markers from the reader at `address`.

    The dataset has more than `HOT` executions. Raises `ValueError` for a wrong page on the way to
    the deep ones.
    """
    numbers = list(range(dataset.executions))
    random.Random(_SEED).shuffle(numbers)
    lists, pages = [], []
    for number in numbers:
        events = dataset.listed(number)
        lists.append(of_events(path(number), events))
        pages.append(of_events(f"{path(number)}?limit={PAGE}", events[:PAGE]))
    long = dataset.listed(dataset.executions)
    async with httpx.AsyncClient(base_url=address, timeout=_TIMEOUT) as client:
        hot, lists = lists[:HOT], lists[HOT:]
        tags = [(await client.get(each.path)).headers["ETag"] for each in hot]
        walked = await _walk(client, f"{path(dataset.executions)}?limit={PAGE}", long)
    deep = walked[int(len(walked) * DEPTH) :]
    return RequestSets(
        lists=lists,
        static=lists[:1],
        hot=hot,
        unchanged=[
            Request(each.path, status=304, headers={"If-None-Match": tag}, length=0)
            for each, tag in zip(hot, tags, strict=True)
        ],
        gzip=[_encoded(each, "gzip") for each in hot],
        zstd=[_encoded(each, "zstd") for each in hot],
        pages=pages,
        first_short=uncached(pages[:1]),
        first_long=uncached(walked[:1]),
        deep=uncached(deep[:1]),
        all_deep=uncached(deep),
        whole=of_events(path(dataset.executions), long),
        seed=body(dataset.listed(numbers[HOT])),
    )


def uncached(requests: Sequence[Request]) -> list[Request]:
    """Return the requests in turn, each with different headers of the same meaning."""
    headers = (f"application/json, text/{number}" for number in range(_SPELLINGS))
    return [
        msgspec.structs.replace(each, headers={"Accept": accept})
        for each, accept in zip(cycle(requests), headers, strict=False)
    ]


def _encoded(each: Request, encoding: str) -> Request:
    return Request(each.path, headers={"Accept-Encoding": encoding}, sha256=each.sha256)


async def _walk(
    client: httpx.AsyncClient, first: str, events: Sequence[Occurrence]
) -> list[Request]:
    """Follow the markers from page to page as a client would."""
    requests: list[Request] = []
    target: str | None = first
    while target is not None:
        start = PAGE * len(requests)
        expected = body(events[start : start + PAGE])
        answer = await client.get(target)
        if answer.content != expected:
            raise ValueError(f"{target}: not the page that begins with event {start}")
        requests.append(of_body(target, expected))
        marker = answer.headers.get("X-Next-Marker")
        target = None if marker is None else f"{first}&marker={marker}"
    if PAGE * len(requests) < len(events):
        raise ValueError(f"{first}: ends after {len(requests)} pages")
    return requests
