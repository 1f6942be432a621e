"""A watch ends when its caller's access changes; every comment checks the token."""

import os
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from execution_events.metrics import ReaderMetrics
from execution_events.reader.watch import WatchTimeouts
from execution_events.web.auth.access import Caller, IssuerUnavailableError
from execution_events.web.auth.issuer import LEEWAY, Issuer
from execution_events.web.auth.token_file import TokenFile
from tests.support.apis import serving
from tests.support.consumers import until
from tests.support.databases import Database
from tests.support.issuers import AUDIENCE, ISSUER, KeyServer, ec_key
from tests.support.readers import EVENTS, named
from tests.support.records import Log
from tests.support.tokens import token_file
from tests.support.watching import Watcher, keyed

OFTEN = WatchTimeouts(keepalive=0.1)


def write(path: Path, tenants: Mapping[str, list[str]]) -> None:
    """Replace the file atomically: the reader must not see half of it."""
    new = path.with_suffix(".new")
    new.write_text(token_file(tenants))
    os.replace(new, path)  # noqa: PTH105 - as a deployment does


@pytest.mark.parametrize("after", [[], ["other"], ["tenant", "other"]])
async def test_a_watch_ends_when_its_token_is_removed_or_changed(
    database: Database, written: Log, tmp_path: Path, after: list[str]
) -> None:
    await written.add(named("a"), named("b", namespace="other"))
    path = tmp_path / "tokens.json"
    tokens = {"changed": ["tenant"], "same": ["tenant"]}
    write(path, tokens)
    changed, same = Watcher(), Watcher()
    async with serving(database.reader, OFTEN, partial(TokenFile.open, path)) as api:
        headers = {"X-Auth-Token": "changed"}
        async with (
            same.watching(api.client, EVENTS, headers={"X-Auth-Token": "same"}) as other,
            changed.watching(api.client, EVENTS, headers=headers) as watch,
        ):
            await other.next(2)
            await watch.next(2)
            write(path, {"same": ["tenant"]} | ({"changed": after} if after else {}))
            # In order: a truncated response raises.
            await watch.end()
            assert [message.data for message in changed.seen][1:] == [*changed.events.values()]
            await written.add(named("c"), named("d", namespace="other"))
            [message] = await other.next()
            assert message.data["metadata"]["name"] == "c"
        # A client that reconnects gets the namespaces that it may read now, and no others.
        response = await api.client.get(EVENTS, headers=headers)
        assert response.status_code == (200 if after else 401)
        if after:
            async with changed.watching(api.client, EVENTS, headers=headers) as watch:
                await watch.until(keyed(response.json()))


async def test_a_watch_ends_when_its_jwt_expires(database: Database, written: Log) -> None:
    await written.add(named("a"))
    key, server = ec_key("key"), KeyServer()
    server.keys = [key.jwk]

    def issuer(metrics: ReaderMetrics) -> AbstractAsyncContextManager[Issuer]:
        return Issuer.open(server.url, AUDIENCE, ISSUER, "projects", metrics)

    async with server.serve(), serving(database.reader, OFTEN, issuer) as api:
        ends = int(time.time()) - LEEWAY + 2
        tokens = [key.sign(projects=["tenant"], exp=ends), key.sign(projects=["tenant"])]
        short, long = ({"Authorization": f"Bearer {token}"} for token in tokens)
        async with (
            Watcher().watching(api.client, EVENTS, headers=long) as other,
            Watcher().watching(api.client, EVENTS, headers=short) as watch,
        ):
            await other.next(2)
            await watch.next(2)
            await watch.end()
            assert time.time() >= ends + LEEWAY
            await written.add(named("b"))
            await other.next()


class _UnreliableIssuer:
    """An issuer that can become unavailable."""

    def __init__(self) -> None:
        self.is_unavailable = False
        self.requests = 0

    async def caller(self, _: bytes) -> Caller:
        self.requests += 1
        if self.is_unavailable:
            raise IssuerUnavailableError
        return Caller(frozenset({"tenant"}), "one")

    def problems(self) -> list[str]:
        return []


async def test_a_watch_survives_an_unavailable_issuer(database: Database, written: Log) -> None:
    """Access that was granted stays in force."""
    await written.add(named("a"))
    issuer = _UnreliableIssuer()
    headers = {"X-Auth-Token": "token"}
    async with (
        serving(database.reader, OFTEN, lambda _: nullcontext(issuer)) as api,
        Watcher().watching(api.client, EVENTS, headers=headers) as watch,
    ):
        await watch.next(2)
        issuer.is_unavailable, issuer.requests = True, 0

        async def checked() -> bool:
            return issuer.requests > 3

        await until(checked, "its token was checked")
        await written.add(named("b"))
        await watch.next()
