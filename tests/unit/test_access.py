"""Authentication: tokens in headers, and their refusals."""

import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from execution_events.metrics import ReaderMetrics
from execution_events.web.auth.access import (
    ANONYMOUS,
    Access,
    AccessError,
)
from execution_events.web.auth.token_file import (
    TokenFile,
)
from tests.support.tokens import hashed, readable, token_file

TOKEN = "s3cr3t-token"
OTHER = "0ther-token"


def metrics() -> ReaderMetrics:
    return ReaderMetrics(CollectorRegistry())


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def bearer(token: str) -> Headers:
    return headers(("authorization", f"Bearer {token}"))


async def refusal(access: Access, given: Headers) -> tuple[int, str, dict[str, str]]:
    with pytest.raises(AccessError) as error:
        await access.caller(given)
    return error.value.status_code, error.value.detail, dict(error.value.headers or {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(token_file({TOKEN: ["a", "b"], OTHER: []}))
    return path


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def access(path: Path, registry: CollectorRegistry) -> Access:
    gauges = ReaderMetrics(registry)
    return Access(TokenFile(path, gauges), gauges)


@pytest.mark.parametrize(
    "given",
    [
        [("x-auth-token", TOKEN)],
        [("authorization", f"Bearer {TOKEN}")],
        [("authorization", f"bearer   {TOKEN} ")],
        [("x-auth-token", TOKEN), ("authorization", f"BEARER {TOKEN}")],
        [("x-auth-token", TOKEN), ("x-auth-token", TOKEN)],
        [("accept", "*/*"), ("x-auth-token", f" {TOKEN}\t")],
    ],
)
async def test_a_token_is_taken_from_either_header(
    access: Access, given: list[tuple[str, str]]
) -> None:
    caller = await access.caller(headers(*given))
    assert readable(caller) == {"a", "b"}


INVALID = 'Bearer realm="execution-events", error="invalid_token"'


@pytest.mark.parametrize(
    "given",
    [
        [("x-auth-token", "unknown")],
        [("x-auth-token", "")],
        [("x-auth-token", hashed(TOKEN))],
        [("x-auth-token", TOKEN[:-1])],
        [("x-auth-token", TOKEN + "x")],
        [("x-auth-token", "\xff\x80")],
        [("x-auth-token", "x" * 8000)],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", f"Bearer {TOKEN}, Bearer {TOKEN}")],
        [("x-auth-token", TOKEN), ("authorization", f"Bearer {OTHER}")],
        [("x-auth-token", TOKEN), ("authorization", "Basic x")],
        [("x-auth-token", TOKEN), ("x-auth-token", OTHER)],
        [("x-auth-token", TOKEN), ("x-auth-token", "")],
        [("authorization", f"Bearer {OTHER}"), ("authorization", f"Bearer {TOKEN}")],
    ],
)
async def test_every_wrong_token_has_the_same_answer(
    access: Access, registry: CollectorRegistry, given: list[tuple[str, str]]
) -> None:
    assert await refusal(access, headers(*given)) == (
        401,
        "invalid token",
        {"WWW-Authenticate": INVALID},
    )
    name = "execution_events_refused_total"
    assert registry.get_sample_value(name, {"reason": "bad_token"}) == 1


async def test_a_missing_token_gets_its_own_answer(
    access: Access, registry: CollectorRegistry
) -> None:
    status, message, answered = await refusal(access, headers(("accept", TOKEN)))
    assert status == 401
    assert "X-Auth-Token" in message
    assert answered == {"WWW-Authenticate": 'Bearer realm="execution-events"'}
    name = "execution_events_refused_total"
    assert registry.get_sample_value(name, {"reason": "no_token"}) == 1


async def test_without_credentials_all_requests_have_one_caller() -> None:
    access = Access(None, metrics())
    for given in (headers(), bearer("x"), headers(("x-auth-token", "y"))):
        assert await access.caller(given) is ANONYMOUS
    assert ANONYMOUS.namespaces is None
    assert access.problems() == []


async def test_no_token_is_logged_or_displayed(
    access: Access, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caller = await access.caller(bearer(TOKEN))
    other = await access.caller(bearer(OTHER))
    with pytest.raises(AccessError) as refused:
        await access.caller(bearer("unkn0wn"))
    shown = repr((caller, other, access, access._credentials, refused.value, str(refused.value)))
    shown += caplog.text + repr([record.__dict__ for record in caplog.records])
    for secret in (TOKEN, OTHER, "unkn0wn"):
        assert secret not in shown
        assert hashed(secret) not in shown
        assert hashed(secret)[:12] not in shown
    assert caller.limit_key != other.limit_key
