"""JWTs of one issuer, verified against its published keys (a JWKS, RFC 7517)."""

import asyncio
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import h11
import jwt
import msgspec

from execution_events.logs import Logger
from execution_events.metrics import ReaderMetrics
from execution_events.web.auth.access import Caller, IssuerAwayError, is_namespace

_log = Logger(__name__)

LEEWAY: Final = 30
"""Seconds by which the issuer's clock and ours may differ."""
REFRESH_INTERVAL: Final = 300
"""Seconds after which the keys are fetched again: a key that was withdrawn is trusted no longer."""
_REFETCH_INTERVAL = 10.0
"""Seconds between two fetches at the least, however many unknown keys are named."""
FETCH_TIMEOUT: Final = 5.0
"""Seconds for a fetch, all in all."""
JWKS_MAX_BYTES: Final = 2**20
_KEYS_MAX = 256

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
}
"""By type and curve: what signs with a private key. A token's own word is compared to it, no more,
so that none is verified with a public key as if that were a shared secret."""


class IssuerError(Exception):
    """Fetch the keys again later; the text holds nothing that the issuer sent."""


class _Key(NamedTuple):
    public: Any
    algorithms: tuple[str, ...]


class Issuer:
    """Verifies tokens with the issuer's keys, as they were when they were last fetched.

    Keys are fetched every `REFRESH_INTERVAL`, and when a token names an unknown one. While the
    issuer is away, the keys that are known stay in force.
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
        self._keys: dict[str | None, _Key] = {}
        self._problem: str | None = "not fetched yet"
        self._fetched = -_REFETCH_INTERVAL
        self._fetching: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, audience: str, name: str, claim: str, metrics: ReaderMetrics
    ) -> AsyncIterator["Issuer"]:
        """The issuer, once its keys were asked for, and asked again until the end."""
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
        """Whose a token is; None where it is not valid.

        Raises `IssuerAwayError` where it names a key that may be new, and the issuer is away.
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
            _log.debug("a token was refused", reason=type(error).__name__)
            return None
        return Caller(_namespaces(claims.get(self._claim)), _limit_key(claims, token))

    def problems(self) -> list[str]:
        """Only that no key is known: with the former keys, callers are served."""
        return [] if self._keys else [f"the issuer's keys are not known: {self._problem}"]

    async def refresh(self) -> None:
        """Fetch the keys; callers at the same time share one fetch, which outlives any of them."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _key(self, name: str | None) -> _Key | None:
        key = self._find(name)
        if key is None:
            busy = self._fetching is not None and not self._fetching.done()
            if busy or time.monotonic() - self._fetched >= _REFETCH_INTERVAL:
                await self.refresh()
                key = self._find(name)
            if key is None and self._problem is not None:
                raise IssuerAwayError
        return key

    def _find(self, name: str | None) -> _Key | None:
        if name is None and len(self._keys) == 1:
            [key] = self._keys.values()
            return key
        return self._keys.get(name)

    async def _fetch(self) -> None:
        self._fetched = time.monotonic()
        try:
            self._keys = parse_keys(await _get(self._url, self._tls))
        except IssuerError as error:
            self._problem = str(error)
            _log.warning("the issuer's keys cannot be fetched", error=self._problem)
        else:
            self._problem = None
            self._metrics.credentials_read.set_to_current_time()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_INTERVAL if self._problem is None else _REFETCH_INTERVAL)
            await self.refresh()


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def parse_keys(content: bytes) -> dict[str | None, _Key]:
    """The keys of a JWKS that sign, by name; raises `IssuerError` where there are none.

    Others, and kinds that are not known, are left out (RFC 7517, 5).
    """
    try:
        members = msgspec.json.decode(content, type=_Set).keys[:_KEYS_MAX]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise IssuerError("the answer is no JSON Web Key Set") from None
    keys: dict[str | None, _Key] = {}
    for member in members:
        # The curve of RSA keys, should there be one, means nothing.
        curve = member.get("crv") if member.get("kty") != "RSA" else None
        try:
            algorithms = _ALGORITHMS[member["kty"], curve]
            if "alg" in member:
                algorithms = tuple(name for name in algorithms if name == member["alg"])
            if algorithms and member.get("use", "sig") == "sig":
                public = jwt.PyJWK(member, algorithms[0]).key
                keys[member.get("kid")] = _Key(public, algorithms)
        except (KeyError, TypeError, jwt.PyJWTError):
            continue
    if not keys:
        raise IssuerError("the answer has no key that signs")
    return keys


def _namespaces(claim: object) -> frozenset[str]:
    """Those of a claim; none where it is no string and no array."""
    found = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(item for item in found if isinstance(item, str) and is_namespace(item))


def _limit_key(claims: Mapping[str, Any], token: bytes) -> str:
    """One for all tokens of a subject: to have many is no way around a limit."""
    subject = claims.get("sub")
    of = b"subject:" + repr(subject).encode() if subject else b"token:" + token
    return f"jwt:{hashlib.blake2b(of, digest_size=8).hexdigest()}"


async def _get(url: str, tls: ssl.SSLContext | None) -> bytes:
    """The body of a 200 answer, bounded in time and size; redirects are not followed.

    On the loop and not in a thread: a server that sends a byte now and then cannot hold it.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT):
            source, sink = await asyncio.open_connection(
                parts.hostname, parts.port or (443 if tls else 80), ssl=tls
            )
            try:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                client = h11.Connection(h11.CLIENT)
                headers = [("Host", parts.netloc), ("Accept", "application/json, */*;q=0.1")]
                request = h11.Request(
                    method="GET", target=target, headers=[*headers, ("Connection", "close")]
                )
                sink.write(client.send(request) or b"")
                sink.write(client.send(h11.EndOfMessage()) or b"")
                return await _body(client, source)
            finally:
                sink.transport.abort()
    except TimeoutError as error:
        raise IssuerError(f"no answer in {FETCH_TIMEOUT:g} s") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise IssuerError(f"cannot be reached: {type(error).__name__}") from error


async def _body(client: h11.Connection, source: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await source.read(65536))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise IssuerError(f"answered {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > JWKS_MAX_BYTES:
                raise IssuerError(f"the answer has more than {JWKS_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise IssuerError("closed the connection")
