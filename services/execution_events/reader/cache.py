"""Responses that are reused while their execution has not changed."""

from typing import NamedTuple

from cachetools import LRUCache
from starlette.responses import Response

from execution_events.store.read.changes import Namespaces

CACHE_BYTES = 64 * 2**20
_SHARE = 16
"""A response larger than this fraction of the cache is not cached: it would evict many others."""
_RECENT_KEYS = 4096
_OVERHEAD_BYTES = 1536
"""Memory of an entry besides the texts of its key and response."""
_NAMESPACE_OVERHEAD_BYTES = 128
"""Memory of a namespace in a set besides its characters."""


class QueryKey(NamedTuple):
    """Everything that a response depends on: the request as sent, and the caller's namespaces."""

    execution_id: str
    namespaces: Namespaces
    query_string: bytes
    accept: str
    accept_encoding: str


class CachedResponse(NamedTuple):
    """A response, its entity tag, and the revisions that it shows."""

    revisions: str
    tag: str
    response: Response


class ResponseCache:
    """Responses in bounded memory; the least recently used are evicted first.

    Callers must check that the revisions of a response are current. Only a response that is
    requested repeatedly is cached: caching every one would cost a fifth of the time of a list, and
    evict those that are in demand.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._entries: LRUCache[QueryKey, _Entry] = LRUCache(limit_bytes, lambda entry: entry.size)
        # Hashes of keys, which can be long.
        self._recent_keys: LRUCache[int, None] = LRUCache(_RECENT_KEYS)

    def get(self, key: QueryKey) -> CachedResponse | None:
        try:
            return self._entries[key].cached
        except KeyError:
            return None

    def put(self, key: QueryKey, cached: CachedResponse) -> None:
        """Replace the response for `key`; cache a new one if it is small and was requested before.

        A replaced response is dropped even if the new one is too large to be cached.
        """
        is_repeated = self._entries.pop(key, None) is not None or self._note_request(key)
        entry = _Entry(cached, _size(key, cached))
        if is_repeated and entry.size <= self._entries.maxsize // _SHARE:
            self._entries[key] = entry

    def _note_request(self, key: QueryKey) -> bool:
        """Record a request for `key`; return whether there was one recently."""
        number = hash(key)
        was_requested = number in self._recent_keys
        self._recent_keys[number] = None
        return was_requested


class _Entry(NamedTuple):
    cached: CachedResponse
    size: int


def _size(key: QueryKey, cached: CachedResponse) -> int:
    response, namespaces = cached.response, key.namespaces or ()
    texts = (key.query_string, key.accept, key.accept_encoding, cached.revisions, response.body)
    return (
        _OVERHEAD_BYTES
        + sum(map(len, texts))
        # The link to the next page repeats the query.
        + sum(len(name) + len(value) for name, value in response.raw_headers)
        # Each JWT brings a set of its own.
        + sum(len(namespace) + _NAMESPACE_OVERHEAD_BYTES for namespace in namespaces)
    )
