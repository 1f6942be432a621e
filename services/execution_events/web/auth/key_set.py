"""An issuer's public keys, fetched as a JSON Web Key Set (RFC 7517)."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import h11
import jwt
import msgspec

FETCH_TIMEOUT: Final = 5.0
"""Seconds for a whole fetch, from the connection to the last byte."""
KEY_SET_MAX_BYTES: Final = 2**20
_KEYS_MAX = 256

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA_ALGORITHMS,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
}
"""Signature algorithms by key type and curve. The `alg` of a token must be one of its key's, so
that no public key is ever used as an HMAC secret."""


_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth"))
"""Members of private keys alone (RFC 7518, 6.2.2 and 6.3.2; RFC 8037, 2)."""


class KeySetError(Exception):
    """Fetch the keys again later; the text contains nothing that the issuer sent."""


class Key(NamedTuple):
    """A public key and the algorithms that it verifies."""

    public: Any
    algorithms: tuple[str, ...]


class KeySet(NamedTuple):
    """Signing keys by key id, and why others were refused, by their number in the set from 1."""

    keys: Mapping[str | None, Key]
    refused: Mapping[int, str]


class _Members(msgspec.Struct):
    keys: list[dict[str, Any]]


async def fetch_keys(url: str, tls: ssl.SSLContext | None) -> KeySet:
    """Return the signing keys at `url`; raises `KeySetError`.

    The fetch takes at most `FETCH_TIMEOUT` seconds and `KEY_SET_MAX_BYTES` bytes, and follows no
    redirect and no proxy variable. PyJWT decodes each key, but its `PyJWKClient` cannot fetch them
    with these limits: its timeout is one of each read, so that a slow server holds a thread
    indefinitely, and it reads responses of any size. While the issuer is down it also discards
    expired keys and repeats the fetch for every unknown key id, and it ignores keys without an id.
    """
    return parse_keys(await _get(url, tls))


def parse_keys(content: bytes) -> KeySet:
    """Return the signing keys of a key set; raises `KeySetError` if there are none.

    Encryption keys, shared secrets and unknown or malformed keys are ignored (RFC 7517, 5). A
    private key is refused, as others may know it. So are keys with the same id: a token that names
    it could be of either.
    """
    try:
        members = msgspec.json.decode(content, type=_Members).keys[:_KEYS_MAX]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise KeySetError("expected a JSON Web Key Set") from None
    keys: dict[str | None, Key] = {}
    refused: dict[int, str] = {}
    number_of: dict[str | None, int] = {}
    for number, member in enumerate(members, 1):
        # RSA has no curves: a `crv` member has no meaning there.
        curve = member.get("crv") if member.get("kty") != "RSA" else None
        try:
            algorithms = _ALGORITHMS[member["kty"], curve]
            if "alg" in member:
                algorithms = tuple(name for name in algorithms if name == member["alg"])
            if algorithms and member.get("use", "sig") == "sig":
                public = jwt.PyJWK(member, algorithms[0]).key
                key_id = member.get("kid")
                if key_id in number_of:
                    refused[number] = refused[number_of[key_id]] = "duplicate key id"
                    keys.pop(key_id, None)
                    continue
                number_of[key_id] = number
                if not _PRIVATE.isdisjoint(member):
                    refused[number] = "private key"
                else:
                    keys[key_id] = Key(public, algorithms)
        except (KeyError, TypeError, jwt.PyJWTError):
            continue
    if not keys:
        reasons = "".join(f"; key {number}: {reason}" for number, reason in sorted(refused.items()))
        raise KeySetError(f"the key set has no acceptable signing key{reasons}")
    return KeySet(keys, refused)


async def _get(url: str, tls: ssl.SSLContext | None) -> bytes:
    """Return the body of a 200 response."""
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
        raise KeySetError(f"no response within {FETCH_TIMEOUT:g} s") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise KeySetError(f"fetch failed: {type(error).__name__}") from error


async def _body(client: h11.Connection, source: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await source.read(65536))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise KeySetError(f"expected status 200, got {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > KEY_SET_MAX_BYTES:
                raise KeySetError(f"expected at most {KEY_SET_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise KeySetError("the issuer closed the connection")
