"""Who is asking: a request's headers to the caller and what they may read."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from starlette.exceptions import HTTPException

from execution_events.events import NAME_MAX_BYTES
from execution_events.metrics import ReaderMetrics


class Caller(NamedTuple):
    """What a caller may read, and what their requests are counted under."""

    namespaces: frozenset[str] | None
    """None is all: only where nothing tells callers apart, which is on loopback addresses."""
    key: str
    """The same for all requests of one caller; no secret, and none can be found from it."""


ANYONE = Caller(None, "anyone")


class AccessError(HTTPException):
    """Send a token that is in force: 401. The text never tells why a token is refused."""

    def __init__(self, message: str, *, invalid: bool) -> None:
        challenge = 'Bearer realm="execution-events"' + ', error="invalid_token"' * invalid
        super().__init__(401, message, {"WWW-Authenticate": challenge})


class IssuerAwayError(HTTPException):
    """Try again later: the issuer cannot be asked for the key that signed a token."""

    def __init__(self) -> None:
        super().__init__(503, "the issuer of tokens is away; try again", {"Retry-After": "1"})


class Credentials(Protocol):
    """What knows tokens."""

    async def caller(self, token: bytes) -> Caller | None:
        """Whose a token is; None for every token that is not in force, without telling why."""

    def problems(self) -> list[str]:
        """Why the reader is not ready; what was known before stays in force."""


class Access:
    """Tells callers apart by `credentials`; without, everybody is `ANYONE`."""

    def __init__(self, credentials: Credentials | None, metrics: ReaderMetrics) -> None:
        self._credentials = credentials
        self._metrics = metrics

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request with these headers: Starlette's, which may repeat.

        Raises `AccessError`, and `IssuerAwayError` where nobody can tell now.
        """
        if self._credentials is None:
            return ANYONE
        tokens = set(_tokens(headers))
        if not tokens:
            self._metrics.refused.labels("no_token").inc()
            raise AccessError(
                "a token is needed: X-Auth-Token or Authorization: Bearer", invalid=False
            )
        caller = None
        if len(tokens) == 1:
            try:
                caller = await self._credentials.caller(tokens.pop())
            except IssuerAwayError:
                self._metrics.refused.labels("issuer_away").inc()
                raise
        if caller is None:
            self._metrics.refused.labels("bad_token").inc()
            raise AccessError("the token is not valid", invalid=True)
        return caller

    def problems(self) -> list[str]:
        return [] if self._credentials is None else self._credentials.problems()


def is_namespace(text: str) -> bool:
    """Whether an event can have it; PostgreSQL takes no NUL, and UTF-8 no lone surrogate."""
    try:
        return 1 <= len(text.encode()) <= NAME_MAX_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def _tokens(headers: Mapping[str, str]) -> Iterable[bytes]:
    for name, value in headers.items():
        if name == "x-auth-token":
            yield value.strip().encode("latin-1")
        elif name == "authorization":
            scheme, _, token = value.strip().partition(" ")
            # Another scheme is a wrong token: who sends one thinks that it is looked at.
            yield token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
