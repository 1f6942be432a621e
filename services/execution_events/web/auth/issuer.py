"""JWTs of one issuer, verified with its published keys."""

import asyncio
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import jwt

from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.web.auth.access import Caller, IssuerUnavailableError, is_namespace
from execution_events.web.auth.key_set import Key, KeySetError, fetch_keys

_log = Logger(__name__)

LEEWAY: Final = 30
"""Seconds by which the issuer's clock and ours may differ."""
REFRESH_INTERVAL: Final = 300
"""Seconds between fetches of the keys; bounds the trust in a withdrawn key."""
_REFETCH_INTERVAL = 10.0
"""Minimum seconds between fetches for unknown key ids, and after a failed fetch."""


class Issuer:
    """A verifier of JWTs.

    The keys are fetched every `REFRESH_INTERVAL` seconds, and when a token names an unknown key.
    While a fetch fails, the known keys stay in force.
    """

    def __init__(
        self, url: str, audience: str, name: str, claim: str, metrics: ReaderMetrics
    ) -> None:
        self._url = url
        self._audience = audience
        self._name = name
        self._claim = claim
        self._metrics = metrics
        self._tls = ssl.create_default_context() if url.startswith("https:") else None
        self._keys: Mapping[str | None, Key] = {}
        self._refused: Mapping[int, str] = {}
        self._problem: str | None = "not fetched yet"
        self._fetched_at = -_REFETCH_INTERVAL
        self._fetching: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, audience: str, name: str, claim: str, metrics: ReaderMetrics
    ) -> AsyncIterator["Issuer"]:
        """Yield an issuer after its first fetch, and refresh its keys until exit."""
        issuer = cls(url, audience, name, claim, metrics)
        await issuer.refresh()
        refreshing = asyncio.create_task(issuer._keep_fresh())
        try:
            yield issuer
        finally:
            tasks = [task for task in (refreshing, issuer._fetching) if task is not None]
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def caller(self, token: bytes) -> Caller | None:
        """Return the caller with this token; None if it is invalid.

        Raises `IssuerUnavailableError` if its key is unknown and the last fetch failed.
        """
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                audience=self._audience,
                issuer=self._name,
                leeway=LEEWAY,
                options={"require": ["exp", "aud", "iss"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            _log.debug("token_rejected", error=type(error).__name__)
            return None
        return Caller.of_token(_namespaces(claims.get(self._claim)), _limit_key(claims, token))

    def problems(self) -> list[str]:
        """Return why no key is known; with earlier keys the reader is ready."""
        return [] if self._keys else [f"the issuer's keys are unknown: {self._problem}"]

    async def refresh(self) -> None:
        """Fetch the keys; concurrent callers share one fetch, which outlives any of them."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _key(self, key_id: str | None) -> Key | None:
        key = self._find(key_id)
        if key is None:
            is_fetching = self._fetching is not None and not self._fetching.done()
            if is_fetching or time.monotonic() - self._fetched_at >= _REFETCH_INTERVAL:
                await self.refresh()
                key = self._find(key_id)
            if key is None and self._problem is not None:
                raise IssuerUnavailableError
        return key

    def _find(self, key_id: str | None) -> Key | None:
        if key_id is None and len(self._keys) == 1:
            [key] = self._keys.values()
            return key
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        self._fetched_at = time.monotonic()
        try:
            key_set = await fetch_keys(self._url, self._tls)
        except KeySetError as error:
            self._problem = str(error)
            _log.warning("issuer_unavailable", error=self._problem)
        else:
            if key_set.refused != self._refused:
                for number, reason in sorted(key_set.refused.items()):
                    _log.warning("issuer_key_refused", key=number, error=reason)
            self._keys, self._refused = key_set
            self._problem = None
            self._metrics.credentials_read.set_to_current_time()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL if self._problem is None else _REFETCH_INTERVAL)
            await self.refresh()


def _namespaces(claim: object) -> frozenset[str]:
    """Return the namespaces of a claim, a string or an array; none for any other value."""
    given = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    found = [item for item in given if isinstance(item, str) and is_namespace(item)]
    # Beside an item that is none, `*` is not the only one.
    return frozenset(found) if len(found) == len(given) else frozenset(found) - {"*"}


def _limit_key(claims: Mapping[str, Any], token: bytes) -> str:
    """Return one key for all tokens of a subject: more tokens give no higher limit."""
    subject = claims.get("sub")
    of = b"subject:" + repr(subject).encode() if subject else b"token:" + token
    return f"jwt:{hashlib.blake2b(of, digest_size=8).hexdigest()}"
