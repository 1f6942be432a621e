"""Authentication and limits of a running reader: 401, 429, and the namespaces of a token."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from execution_events.errors import SettingsError
from execution_events.reader.service import run_reader
from execution_events.store.write.batches import BatchWriter
from tests.support.configuration import configured
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.issuers import AUDIENCE, ISSUER, KeyServer, ec_key
from tests.support.readers import EVENTS, Reader, named, reading
from tests.support.records import batch, log
from tests.support.tokens import NONE, ONE, TENANTS, TWO, token_file


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(token_file())
    return path


@pytest.fixture
async def guarded(database: Database, tokens: Path) -> AsyncIterator[Reader]:
    async with reading(
        database.reader, tokens_file=str(tokens), reader_max_requests_per_token=2
    ) as reader:
        yield reader


async def names(reader: Reader, headers: dict[str, str]) -> list[str]:
    response = await reader.get(EVENTS, headers=headers)
    assert response.status_code == 200, response.text
    return [event["metadata"]["name"] for event in response.json()]


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="execution-events"'),
        ({"X-Auth-Token": "unkn0wn"}, 'Bearer realm="execution-events", error="invalid_token"'),
        (
            {**ONE, "Authorization": "Bearer t0ken-of-two"},
            'Bearer realm="execution-events", error="invalid_token"',
        ),
    ],
)
async def test_a_caller_without_a_valid_token_is_refused(
    guarded: Reader, headers: dict[str, str], challenge: str
) -> None:
    for method in ("GET", "HEAD"):
        response = await guarded.request(method, EVENTS, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == challenge
        assert response.headers["X-Request-Id"]
        if method == "GET":
            assert response.json()["error_code"] == "EE.0401"


async def test_a_caller_reads_the_namespaces_of_its_token(
    guarded: Reader, writer: BatchWriter
) -> None:
    await writer.store(
        batch(log([named("a", namespace="one"), named("b", namespace="two"), named("c")]))
    )
    assert await names(guarded, ONE) == ["a"]
    assert await names(guarded, TWO) == ["b"]
    assert await names(guarded, {"Authorization": "Bearer t0ken-of-two"}) == ["b"]
    assert await names(guarded, NONE) == []


async def test_tokens_are_reloaded_and_a_broken_file_is_reported(
    guarded: Reader, tokens: Path, writer: BatchWriter
) -> None:
    await writer.store(batch(log([named("a", namespace="one")])))
    assert (await guarded.management.get("/readyz")).status_code == 200
    new = {"X-Auth-Token": "a-new-0ne"}
    assert (await guarded.get(EVENTS, headers=new)).status_code == 401

    tokens.write_text(token_file({"a-new-0ne": ["one"]}))

    async def in_force() -> bool:
        return (await guarded.get(EVENTS, headers=new)).status_code == 200

    await until(in_force, "the new token is in force")
    assert await names(guarded, new) == ["a"]
    assert (await guarded.get(EVENTS, headers=ONE)).status_code == 401

    tokens.write_text("{")

    async def told() -> bool:
        ready = await guarded.management.get("/readyz")
        return ready.status_code == 503 and "token file" in ready.json()["reasons"][0]

    await until(told, "the broken file is reported")
    assert await names(guarded, new) == ["a"]


async def metric(reader: Reader, name: str, **labels: str) -> float | None:
    text = (await reader.management.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"execution_events_{name}" and sample.labels == labels:
                return sample.value
    return None


async def test_concurrent_requests_of_one_token_are_limited(
    guarded: Reader, owner: asyncpg.Connection
) -> None:
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("LOCK TABLE execution_events.event IN ACCESS EXCLUSIVE MODE")
    waiting = [asyncio.create_task(guarded.get(EVENTS, headers=ONE)) for _ in range(2)]

    async def answering(number: int) -> bool:
        return await metric(guarded, "open_requests") == number

    await until(lambda: answering(2), "two requests are being answered")
    response = await guarded.get(EVENTS, headers=ONE)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "1"
    assert response.json()["error_code"] == "EE.0429"
    waiting.append(asyncio.create_task(guarded.get(EVENTS, headers=TWO)))
    await until(lambda: answering(3), "another caller is being answered")
    # One client disconnects before its response.
    waiting[0].cancel()
    await transaction.rollback()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: answering(0), "all slots are free")
    assert await metric(guarded, "refused_total", reason="caller_requests") == 1
    assert [task.result().status_code for task in waiting[1:]] == [200, 200]


@pytest.mark.tampers
async def test_no_token_is_logged_or_measured(
    guarded: Reader, owner: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for headers in (ONE, TWO, {"X-Auth-Token": "unkn0wn-t0ken"}):
        await guarded.get(EVENTS, headers=headers)
    await owner.execute("ALTER TABLE execution_events.execution RENAME TO moved")
    assert (await guarded.get(EVENTS, headers=ONE)).status_code == 500
    shown = repr([record.__dict__ for record in caplog.records]) + caplog.text
    shown += (await guarded.management.get("/metrics")).text
    assert "request_failed" in shown
    for token in (*TENANTS, "unkn0wn-t0ken"):
        assert token not in shown
        assert hashlib.sha256(token.encode()).hexdigest()[:12] not in shown


async def test_a_jwt_of_the_issuer_is_accepted(database: Database, writer: BatchWriter) -> None:
    await writer.store(batch(log([named("a", namespace="one"), named("b", namespace="two")])))
    key, other = ec_key("key"), ec_key("key")
    server = KeyServer()
    server.keys = [key.jwk]
    async with (
        server.serve(),
        reading(
            database.reader,
            jwks_url=server.url,
            jwt_audience=AUDIENCE,
            jwt_issuer=ISSUER,
            jwt_namespaces_claim="projects",
        ) as reader,
    ):
        assert (await reader.management.get("/readyz")).status_code == 200
        valid = {"Authorization": f"Bearer {key.sign(projects=['two'])}"}
        assert await names(reader, valid) == ["b"]
        assert await names(reader, {"X-Auth-Token": key.sign()}) == []
        for token in (key.sign(exp=1), key.sign(aud="other"), other.sign(projects=["two"])):
            response = await reader.get(EVENTS, headers={"X-Auth-Token": token})
            assert response.status_code == 401


async def test_the_reader_is_not_ready_while_its_issuer_is_unavailable(
    database: Database, unused_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_port}/keys"
    async with reading(
        database.reader, jwks_url=url, jwt_audience=AUDIENCE, jwt_issuer=ISSUER
    ) as reader:
        ready = await reader.management.get("/readyz")
        assert ready.status_code == 503
        assert "issuer" in ready.json()["reasons"][0]
        response = await reader.get(EVENTS, headers={"X-Auth-Token": ec_key("k").sign()})
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert "issuer" in response.json()["error_msg"]
        assert (await reader.get(EVENTS)).status_code == 401


async def test_with_tokens_other_addresses_are_served(database: Database, tokens: Path) -> None:
    async with reading(database.reader, tokens_file=str(tokens), reader_host="0.0.0.0") as reader:
        port = reader.api.base_url.port
        response = await reader.get(f"http://127.0.0.1:{port}{EVENTS}")
        assert response.status_code == 401


async def test_a_missing_token_file_is_named(database: Database, tmp_path: Path) -> None:
    settings = configured(
        database_url=database.reader, tokens_file=str(tmp_path / "absent"), reader_port=0
    )
    with pytest.raises(SettingsError, match=r"^EXECUTION_EVENTS_TOKENS_FILE: No such file"):
        await run_reader(settings, asyncio.Event())


async def test_refusals_of_the_server_are_in_the_metrics(guarded: Reader) -> None:
    response = await guarded.api.request("GET", EVENTS, content=b"x", headers=ONE)
    assert response.status_code == 413
    assert await metric(guarded, "refused_total", reason="body") == 1
