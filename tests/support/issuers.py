"""A local issuer of JWTs: its keys over HTTP, and tokens signed with them."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "execution-events"
ISSUER = "https://issuer.example"


class SigningKey(NamedTuple):
    """A private key, its name, and the algorithm it signs with."""

    name: str
    algorithm: str
    private: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(algorithm.to_jwk(self.private.public_key()))
        return {**public, "kid": self.name, "use": "sig"}

    @property
    def pem(self) -> bytes:
        """The public half in PEM, for attacks that use it as a shared secret."""
        public: bytes = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return public

    def sign(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a valid token with other `claims`; None leaves a claim out."""
        now = int(time.time())
        standard = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "iat": now}
        payload = {k: v for k, v in (standard | claims).items() if v is not None}
        named = {"kid": self.name} | (headers or {})
        # Like jwt.encode, which refuses some claims that tests need.
        content = json.dumps(payload).encode()
        return jwt.PyJWS().encode(
            content, self.private, self.algorithm, headers={"typ": "JWT"} | named
        )


def rsa_key(name: str, algorithm: str = "RS256", bits: int = 2048) -> SigningKey:
    return SigningKey(name, algorithm, rsa.generate_private_key(65537, bits))


def ec_key(name: str) -> SigningKey:
    return SigningKey(name, "ES256", ec.generate_private_key(ec.SECP256R1()))


def ed_key(name: str) -> SigningKey:
    return SigningKey(name, "EdDSA", ed25519.Ed25519PrivateKey.generate())


def forge(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None) -> str:
    """Return a token without a signature, or with an HMAC."""
    parts = [_encoded(json.dumps(part).encode()) for part in (header, payload)]
    signed = b".".join(parts)
    signature = b"" if secret is None else hmac.digest(secret, signed, hashlib.sha256)
    return b".".join([signed, _encoded(signature)]).decode()


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


class KeyServer:
    """A server of a JWKS; its responses can change at any time."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.requests = 0
        self.url = ""
        self.answer: Callable[[], bytes] = self._answer
        self.silent = False
        self._closing = asyncio.Event()

    def _answer(self) -> bytes:
        return http_answer(json.dumps({"keys": self.keys}).encode())

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[None]:
        """Serve while the context is open."""
        self._closing.clear()
        server = await asyncio.start_server(self._handle, "127.0.0.1", port)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/keys?set=1"
        try:
            yield
        finally:
            self._closing.set()
            server.close()
            await server.wait_closed()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    async def _handle(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            head = await source.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET /keys?set=1 HTTP/1.1\r\n")
            self.requests += 1
            if self.silent:
                await self._closing.wait()
            else:
                sink.write(self.answer())
                await sink.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            sink.close()


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
