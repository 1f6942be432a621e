"""`tail --json`, folded, equals the list at rest, through interruptions."""

import asyncio
import json
import secrets
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest

from execution_events.tail import watch as watch_module
from execution_events.tail.follow import TailOptions, follow
from execution_events.tail.lines import Style
from tests.faults.proxy import Proxy
from tests.support.consumers import DEADLINE, until
from tests.support.databases import Database
from tests.support.flow import EXECUTIONS, FILTERS, Flow
from tests.support.readers import Reader
from tests.support.watching import Key, keyed


class Fold:
    """The output of a run, and what a program that reads it knows."""

    def __init__(self, number: int) -> None:
        self.params = FILTERS[number][0]
        self.events: dict[Key, dict[str, Any]] = {}
        self.counts: dict[Key, int] = {}
        self.notes: list[str] = []
        self.lines = 0

    def event(self, text: str) -> None:
        for line in text.splitlines():
            self.lines += 1
            told = json.loads(line)
            metadata = told["event"]["metadata"]
            key = metadata["namespace"], metadata["name"]
            known = self.events.get(key)
            match told["change"]:
                case "gone":
                    del self.events[key], self.counts[key]
                    continue
                case "present" | "added":
                    assert known is None
                    assert told["added"] == told["event"]["count"]
                    self.counts[key] = 0
                case "counted":
                    assert known is not None
                    assert told["added"] >= 1
            self.events[key] = told["event"]
            self.counts[key] += told["added"]

    def note(self, text: str) -> None:
        self.notes.append(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("interruptions", [20, pytest.param(200, marks=pytest.mark.more)])
async def test_what_was_told_equals_the_list(
    database: Database, reader: Reader, monkeypatch: pytest.MonkeyPatch, interruptions: int
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = Random(seed)
    monkeypatch.setattr(watch_module, "_FIRST_DELAY", 0.02)
    port = urlsplit(str(reader.api.base_url)).port
    assert port is not None
    async with Flow.open(database, rng) as flow, Proxy(port) as proxy:
        await flow.begin()
        folds = {
            (id_, number): Fold(number) for id_ in EXECUTIONS for number in range(len(FILTERS))
        }
        stop = asyncio.Event()
        runs = [
            asyncio.create_task(follow(options(id_, fold, proxy.port), fold, lambda: Style(), stop))
            for (id_, _), fold in folds.items()
        ]
        is_written = False
        writers = [
            asyncio.create_task(flow.write(number, lambda: not is_written)) for number in range(2)
        ]
        for _ in range(interruptions):
            before = proxy.accepted
            proxy.cut()
            await until(resumed(proxy, before), "a watch is resumed")
            await flow.until(flow.batches + rng.randint(1, 3))
        is_written = True
        await asyncio.gather(*writers)
        await flow.end()
        for (id_, _), fold in folds.items():
            params = fold.params | {"times": "micro"}
            path = f"/v1/executions/{id_}/events"
            expected = keyed(await reader.events(path, params))

            async def equal(fold: Fold = fold, expected: dict[Key, Any] = expected) -> bool:
                assert not any(run.done() for run in runs)
                return fold.events == expected

            await until(equal, f"{fold.params}: told and listed are equal")
            assert fold.counts == {key: event["count"] for key, event in expected.items()}
        stop.set()
        async with asyncio.timeout(DEADLINE):
            assert await asyncio.gather(*runs) == [0] * len(runs)
        assert proxy.resets >= interruptions


def options(execution_id: str, fold: Fold, port: int) -> TailOptions:
    filters = tuple((name, value) for name, value in fold.params.items() if name != "lang")
    return TailOptions(
        reader=f"http://127.0.0.1:{port}",
        execution_id=execution_id,
        filters=filters,
        last=None,
        as_json=True,
        lang=fold.params.get("lang", "both"),
    )


def resumed(proxy: Proxy, before: int) -> Any:
    async def holds() -> bool:
        return proxy.accepted > before and proxy.connections > 0

    return holds
