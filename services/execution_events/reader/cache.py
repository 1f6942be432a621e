"""Answers that may be given again, as long as nothing has changed."""

from collections import OrderedDict
from typing import NamedTuple

from starlette.responses import Response

from execution_events.store.read.changes import Namespaces

CACHE_BYTES = 64 * 2**20
_SHARE = 16
"""An answer with more than this part of the room is not kept: it would cost many others."""
_REMEMBERED = 4096
"""How many of the last requests are known again."""
_OVERHEAD = 1536
"""Bytes that an answer takes beside the texts of it and of what was asked."""
_NAMESPACE_OVERHEAD = 128
"""Bytes that a namespace takes beside its characters, in a set."""


class Asked(NamedTuple):
    """All of a request that its answer depends on, as it was sent, and what the caller may read."""

    execution_id: str
    namespaces: Namespaces
    query_string: bytes
    accept: str
    accept_encoding: str


class Answer(NamedTuple):
    """An answer, its entity tag, and the revisions that it is of."""

    revisions: str
    tag: str
    response: Response


class Cache:
    """Answers by what was asked, in bounded memory; those used the longest ago leave first.

    Whoever takes one has to ask whether its revisions are still the current ones. An answer is
    kept when it was asked for before: to keep what is asked for once would cost more than it is
    worth, a fifth of the time of a list, and push out what is asked for often.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._room = self._most_bytes = most_bytes
        self._answers: OrderedDict[Asked, Answer] = OrderedDict()
        # By hash, as what was asked can be long; the last is the latest.
        self._lately: OrderedDict[int, None] = OrderedDict()

    def get(self, asked: Asked) -> Answer | None:
        answer = self._answers.get(asked)
        if answer is not None:
            self._answers.move_to_end(asked)
        return answer

    def put(self, asked: Asked, answer: Answer) -> None:
        """Keep `answer` in place of an earlier one, where it is worth it."""
        was_kept = self._drop(asked)
        size = _size(asked, answer)
        if not (was_kept or self._was_asked(asked)) or size > self._most_bytes // _SHARE:
            return
        self._answers[asked] = answer
        self._room -= size
        while self._room < 0:
            self._drop(next(iter(self._answers)))

    def _drop(self, asked: Asked) -> bool:
        answer = self._answers.pop(asked, None)
        if answer is not None:
            self._room += _size(asked, answer)
        return answer is not None

    def _was_asked(self, asked: Asked) -> bool:
        """Whether it was asked for lately; from now on it was."""
        key = hash(asked)
        was_asked = key in self._lately
        self._lately[key] = None
        self._lately.move_to_end(key)
        if len(self._lately) > _REMEMBERED:
            self._lately.popitem(last=False)
        return was_asked


def _size(asked: Asked, answer: Answer) -> int:
    response, namespaces = answer.response, asked.namespaces or ()
    asking = (asked.query_string, asked.accept, asked.accept_encoding)
    return (
        _OVERHEAD
        + sum(map(len, (*asking, answer.revisions, response.body)))
        # The link to the next page holds the query once more.
        + sum(len(name) + len(value) for name, value in response.raw_headers)
        # Each token of an issuer brings its own.
        + sum(len(namespace) + _NAMESPACE_OVERHEAD for namespace in namespaces)
    )
