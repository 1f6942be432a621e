"""Answers are kept within their bound, and those used the longest ago leave first."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.responses import Response

from execution_events.reader.cache import Answer, Asked, Cache, _size

ROOM = 64 * 1024


def asked(name: str, **fields: Any) -> Asked:
    return Asked(name, None, b"", "", "")._replace(**fields)


def answer(body: bytes = b"[]", revisions: str = '{"n": 1}', **headers: str) -> Answer:
    usual = {"Cache-Control": "private, no-cache", "ETag": 'W/"tag"', "Vary": "Accept"}
    return Answer(revisions, 'W/"tag"', Response(body, headers=usual | headers))


def keep(cache: Cache, one: Asked, new: Answer) -> None:
    """Ask twice: what is asked for once is not kept."""
    for _ in range(2):
        cache.put(one, new)


def test_what_is_asked_for_once_is_not_kept() -> None:
    cache = Cache()
    cache.put(asked("a"), answer())
    assert cache.get(asked("a")) is None
    for number in range(4095):
        cache.put(asked(f"other-{number}"), answer())
    cache.put(asked("a"), kept := answer())
    assert cache.get(asked("a")) is kept
    # One more, and the first of the others is forgotten.
    cache.put(asked("one more"), answer())
    cache.put(asked("other-0"), answer())
    assert cache.get(asked("other-0")) is None


def test_an_answer_is_that_to_the_same_question() -> None:
    """Another caller, query, format or encoding is another question."""
    cache = Cache()
    one = asked("a", namespaces=frozenset({"n"}), query_string=b"type=x", accept="a")
    keep(cache, one, kept := answer())
    assert cache.get(one._replace(namespaces=frozenset({"n"}))) is kept
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
    cache.put(one, new := answer(b"[1]"))
    assert cache.get(one) is new


class Model:
    """What is kept, the longest unused first."""

    def __init__(self) -> None:
        self.kept: dict[Asked, Answer] = {}
        self.asked: set[Asked] = set()

    def get(self, one: Asked) -> Answer | None:
        found = self.kept.pop(one, None)
        if found is not None:
            self.kept[one] = found
        return found

    def put(self, one: Asked, new: Answer) -> None:
        was_kept = self.kept.pop(one, None) is not None
        was_asked = one in self.asked
        self.asked.add(one)
        if not (was_kept or was_asked) or _size(one, new) * 16 > ROOM:
            return
        self.kept[one] = new
        while sum(_size(*pair) for pair in self.kept.items()) > ROOM:
            self.kept.pop(next(iter(self.kept)))


# As large as one may be: sixteen of them are as much as there is room for.
LARGEST = ROOM // 16 - _size(asked("a"), answer(b"x" * 1000)) + 1000
_BODIES = st.sampled_from([0, 1, 500, LARGEST - 1, LARGEST, LARGEST + 1, ROOM])
_NAMES = [chr(ord("a") + number) for number in range(20)]
_STEPS = st.lists(st.tuples(st.sampled_from(_NAMES), st.none() | _BODIES), max_size=60)


@given(_STEPS)
@example([(name, LARGEST) for name in _NAMES[:16]] * 2)
@example([(name, LARGEST) for name in _NAMES] * 2)
def test_what_is_kept_is_what_was_used_last(steps: list[tuple[str, int | None]]) -> None:
    cache, model = Cache(ROOM), Model()
    for name, size in steps:
        one = asked(name)
        if size is None:
            assert cache.get(one) is model.get(one)
        else:
            new = answer(b"x" * size)
            cache.put(one, new)
            model.put(one, new)
        # In this order they leave.
        assert list(cache._answers.items()) == list(model.kept.items())
        assert cache._room == ROOM - sum(_size(*pair) for pair in model.kept.items())


def test_one_that_is_too_large_takes_the_place_of_none_but_its_own() -> None:
    cache = Cache(ROOM)
    keep(cache, asked("a"), kept := answer())
    keep(cache, asked("b"), answer())
    cache.put(asked("b"), answer(b"x" * ROOM))
    assert cache.get(asked("a")) is kept
    # What it was before is not what it is now.
    assert cache.get(asked("b")) is None


@pytest.mark.parametrize(
    ("make", "put"),
    [
        (lambda n: (asked(f"e{n}"), answer()), 20_000),
        (lambda n: (asked(f"e{n}"), answer(b"x" * 100_000)), 200),
        (lambda n: (asked("e", query_string=b"q=%d" % n + b"x" * 4096), answer()), 4000),
        (lambda n: (asked("e", accept=f"a/{n}" + "x" * 4096), answer()), 4000),
        (lambda n: (asked(f"e{n}"), answer(link="x" * 8192)), 4000),
        (lambda n: (asked(f"e{n}"), answer(revisions=f"{n}" + "x" * 8192)), 4000),
        (
            lambda n: (
                asked("e", namespaces=frozenset(f"namespace-{n}-{m:024}" for m in range(99))),
                answer(),
            ),
            4000,
        ),
    ],
    ids=["small", "large", "queries", "headers", "links", "revisions", "namespaces"],
)
def test_its_memory_is_bounded(make: Callable[[int], tuple[Asked, Answer]], put: int) -> None:
    """As Python counts it, whatever takes it; and less than a MiB for what was asked lately."""
    most = 4 * 2**20
    cache = Cache(most)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(put):
            keep(cache, *make(number))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache._answers) < put
    assert most / 3 < taken < most * 1.1 + 2**20
