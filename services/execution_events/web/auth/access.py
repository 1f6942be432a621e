"""Access control: from the headers of a request to its caller."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, Self

from starlette.exceptions import HTTPException

from execution_events.events import NAME_MAX_BYTES
from execution_events.metrics import ReaderMetrics


class Caller(NamedTuple):
    """The namespaces a caller may read, and the key of their limits."""

    namespaces: frozenset[str] | None
    """None is all: an operator's, and without credentials, on loopback addresses."""
    limit_key: str
    """Equal for all requests of one caller; reveals nothing about the token."""

    @classmethod
    def of_token(cls, namespaces: Iterable[str], limit_key: str) -> Self:
        """Return the caller with a token for `namespaces`; `*` alone is all of them."""
        found = frozenset(namespaces)
        return cls(None if found == _ALL else found, limit_key)

    @property
    def share(self) -> str | None:
        """The caller's share of the database connections; None, without credentials, is all."""
        return None if self == ANONYMOUS else self.limit_key


_ALL = frozenset({"*"})
ANONYMOUS = Caller(None, "anonymous")


class AccessError(HTTPException):
    """Send a valid token: 401. The text does not say why a token is invalid."""

    def __init__(self, message: str, *, invalid: bool) -> None:
        challenge = 'Bearer realm="execution-events"' + ', error="invalid_token"' * invalid
        super().__init__(401, message, {"WWW-Authenticate": challenge})


class IssuerUnavailableError(HTTPException):
    """Retry later: the key that signed the token cannot be fetched. 503 with `Retry-After`."""

    def __init__(self) -> None:
        super().__init__(503, "token issuer unavailable; retry later", {"Retry-After": "1"})


class Credentials(Protocol):
    """A source of valid tokens."""

    async def caller(self, token: bytes) -> Caller | None:
        """Return the caller with this token; None for every invalid one, without the cause."""

    def problems(self) -> list[str]:
        """Return reasons for not being ready; credentials loaded before stay in force."""


class Access:
    """Authentication by `credentials`; without them every request is `ANONYMOUS`."""

    def __init__(self, credentials: Credentials | None, metrics: ReaderMetrics) -> None:
        self._credentials = credentials
        self._metrics = metrics

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a request with these headers (Starlette's: names can repeat).

        Raises `AccessError`, and `IssuerUnavailableError` if the token cannot be verified now.
        """
        if self._credentials is None:
            return ANONYMOUS
        tokens = set(_tokens(headers))
        if not tokens:
            self._metrics.refused.labels("no_token").inc()
            raise AccessError(
                "token required: send X-Auth-Token or Authorization: Bearer", invalid=False
            )
        caller = None
        if len(tokens) == 1:
            try:
                caller = await self._credentials.caller(tokens.pop())
            except IssuerUnavailableError:
                self._metrics.refused.labels("issuer_away").inc()
                raise
        if caller is None:
            self._metrics.refused.labels("bad_token").inc()
            raise AccessError("invalid token", invalid=True)
        return caller

    def problems(self) -> list[str]:
        return [] if self._credentials is None else self._credentials.problems()


def is_namespace(text: str) -> bool:
    """Return whether an event can have this namespace: 1 to 253 bytes of UTF-8 without NUL."""
    try:
        return 1 <= len(text.encode()) <= NAME_MAX_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def _tokens(headers: Mapping[str, str]) -> Iterator[bytes]:
    for name, value in headers.items():
        token = ""
        if name == "x-auth-token":
            token = value.strip()
        elif name == "authorization":
            # Another scheme may be the proxy's.
            scheme, _, credentials = value.strip().partition(" ")
            token = credentials.strip() if scheme.lower() == "bearer" else ""
        if token:
            yield token.encode("latin-1")
