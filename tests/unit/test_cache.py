"""The response cache stays within its limit and evicts the least recently used first."""

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.responses import Response

from execution_events.reader.cache import CachedResponse, QueryKey, ResponseCache, _size

ROOM = 64 * 1024


def key_of(name: str, **fields: Any) -> QueryKey:
    return QueryKey(name, None, b"", "", "")._replace(**fields)


def response(body: bytes = b"[]", revisions: str = '{"n": 1}', **headers: str) -> CachedResponse:
    usual = {"Cache-Control": "private, no-cache", "ETag": 'W/"tag"', "Vary": "Accept"}
    return CachedResponse(revisions, 'W/"tag"', Response(body, headers=usual | headers))


def cache_response(cache: ResponseCache, key: QueryKey, new: CachedResponse) -> None:
    """Put it twice: after one request it is not cached."""
    for _ in range(2):
        cache.put(key, new)


def test_a_response_is_cached_from_its_second_request() -> None:
    cache = ResponseCache()
    cache.put(key_of("a"), response())
    assert cache.get(key_of("a")) is None
    for number in range(4095):
        cache.put(key_of(f"other-{number}"), response())
    cache.put(key_of("a"), cached := response())
    assert cache.get(key_of("a")) is cached
    # One key more, and the oldest of the recent ones is forgotten.
    cache.put(key_of("one more"), response())
    cache.put(key_of("other-0"), response())
    assert cache.get(key_of("other-0")) is None


def test_every_field_of_the_key_matters() -> None:
    """Caller, query, format and encoding."""
    cache = ResponseCache()
    one = key_of("a", namespaces=frozenset({"n"}), query_string=b"type=x", accept="a")
    cache_response(cache, one, cached := response())
    assert cache.get(one._replace(namespaces=frozenset({"n"}))) is cached
    others: list[dict[str, Any]] = [
        {"execution_id": "b"},
        {"namespaces": None},
        {"namespaces": frozenset()},
        {"namespaces": frozenset({"n", "o"})},
        {"query_string": b"type=y"},
        {"accept": "b"},
        {"accept_encoding": "gzip"},
    ]
    for other in others:
        assert cache.get(one._replace(**other)) is None
    cache.put(one, new := response(b"[1]"))
    assert cache.get(one) is new


class Model:
    """The cached responses, the least recently used first."""

    def __init__(self) -> None:
        self.kept: dict[QueryKey, CachedResponse] = {}
        self.requested: set[QueryKey] = set()

    def get(self, one: QueryKey) -> CachedResponse | None:
        found = self.kept.pop(one, None)
        if found is not None:
            self.kept[one] = found
        return found

    def put(self, one: QueryKey, new: CachedResponse) -> None:
        was_kept = self.kept.pop(one, None) is not None
        was_requested = one in self.requested
        self.requested.add(one)
        if not (was_kept or was_requested) or _size(one, new) * 16 > ROOM:
            return
        self.kept[one] = new
        while sum(_size(*pair) for pair in self.kept.items()) > ROOM:
            self.kept.pop(next(iter(self.kept)))


# The largest that is cached: sixteen fill the cache.
LARGEST = ROOM // 16 - _size(key_of("a"), response(b"x" * 1000)) + 1000
_BODIES = st.sampled_from([0, 1, 500, LARGEST - 1, LARGEST, LARGEST + 1, ROOM])
_NAMES = [chr(ord("a") + number) for number in range(20)]
_STEPS = st.lists(st.tuples(st.sampled_from(_NAMES), st.none() | _BODIES), max_size=60)


@given(_STEPS)
@example([(name, LARGEST) for name in _NAMES[:16]] * 2)
@example([(name, LARGEST) for name in _NAMES] * 2)
def test_the_least_recently_used_is_evicted_first(steps: list[tuple[str, int | None]]) -> None:
    cache, model = ResponseCache(ROOM), Model()
    for name, size in steps:
        one = key_of(name)
        if size is None:
            assert cache.get(one) is model.get(one)
        else:
            new = response(b"x" * size)
            cache.put(one, new)
            model.put(one, new)
        entries = copy.copy(cache._entries)
        assert entries.currsize == sum(_size(*pair) for pair in model.kept.items()) <= ROOM
        evicted = [entries.popitem() for _ in range(len(entries))]
        assert [(one, entry.cached) for one, entry in evicted] == list(model.kept.items())


def test_a_response_too_large_to_cache_replaces_only_its_predecessor() -> None:
    cache = ResponseCache(ROOM)
    cache_response(cache, key_of("a"), cached := response())
    cache_response(cache, key_of("b"), response())
    cache.put(key_of("b"), response(b"x" * ROOM))
    assert cache.get(key_of("a")) is cached
    # The predecessor is outdated.
    assert cache.get(key_of("b")) is None


@pytest.mark.parametrize(
    ("make", "put"),
    [
        (lambda n: (key_of(f"e{n}"), response()), 20_000),
        (lambda n: (key_of(f"e{n}"), response(b"x" * 100_000)), 200),
        (lambda n: (key_of("e", query_string=b"q=%d" % n + b"x" * 4096), response()), 4000),
        (lambda n: (key_of("e", accept=f"a/{n}" + "x" * 4096), response()), 4000),
        (lambda n: (key_of(f"e{n}"), response(link="x" * 8192)), 4000),
        (lambda n: (key_of(f"e{n}"), response(revisions=f"{n}" + "x" * 8192)), 4000),
        (
            lambda n: (
                key_of("e", namespaces=frozenset(f"namespace-{n}-{m:024}" for m in range(99))),
                response(),
            ),
            4000,
        ),
    ],
    ids=["small", "large", "queries", "headers", "links", "revisions", "namespaces"],
)
def test_its_memory_is_bounded(
    make: Callable[[int], tuple[QueryKey, CachedResponse]], put: int
) -> None:
    """As counted by tracemalloc, whichever part is large; the recent keys take less than 1 MiB."""
    limit = 4 * 2**20
    cache = ResponseCache(limit)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(put):
            cache_response(cache, *make(number))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache._entries) < put
    assert limit / 3 < taken < limit * 1.1 + 2**20
