"""The code of `schemas/watching.md`, run by Node as a browser would."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.foreign.programs import NODE, tool
from tests.support.consumers import DEADLINE
from tests.support.databases import Database
from tests.support.golden import SCHEMAS
from tests.support.readers import EVENTS, named, reading
from tests.support.records import Log
from tests.support.tokens import TENANTS, token_file

# Node is downloaded.
pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]

WATCH, KEEP = re.findall(r"```js\n(.*?)\n```", (SCHEMAS / "watching.md").read_text(), re.DOTALL)
DRIVER = """
function print(event, data) {
  onMessage(event, data);
  const counts = [...events.values()].map((one) => [one.metadata.name, one.count]);
  console.log(JSON.stringify([event, Object.fromEntries(counts)]));
}

await watch(process.argv[2], process.argv[3], print, new AbortController().signal);
"""


@asynccontextmanager
async def watching(
    directory: Path, url: str, token: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that prints each message and the events that it knows."""
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "watch.js").write_text(WATCH)
    (directory / "main.js").write_text(KEEP + DRIVER)
    process = await asyncio.create_subprocess_exec(
        *(await tool(f"{NODE}/bin/node"), str(directory / "main.js"), url, token),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "tokens.json"
    path.write_text(token_file())
    return str(path)


async def test_the_page_follows_an_execution_over_several_connections(
    database: Database, written: Log, tokens: str, tmp_path: Path, unused_port: int
) -> None:
    async def event(name: str, second: float = 0) -> None:
        await written.add(named(name, second, namespace="one"))

    url = f"http://127.0.0.1:{unused_port}{EVENTS}"
    await event("a")
    async with watching(tmp_path, url, next(iter(TENANTS))) as process:
        assert process.stdout
        assert process.stderr
        output, errors = process.stdout, process.stderr

        async def printed() -> list[object]:
            async with asyncio.timeout(DEADLINE):
                line = await output.readline()
            assert line, (await errors.read()).decode()
            found: list[object] = json.loads(line)
            return found

        async with reading(database.reader, tokens_file=tokens, reader_port=unused_port):
            assert await printed() == ["reset", {}]
            assert await printed() == ["message", {"a": 1}]
            await event("b")
            assert await printed() == ["message", {"a": 1, "b": 1}]
        await event("b", 1)
        async with reading(database.reader, tokens_file=tokens, reader_port=unused_port):
            # No reset: it has resumed.
            assert await printed() == ["message", {"a": 1, "b": 2}]
            await event("a", 1)
            assert await printed() == ["message", {"a": 2, "b": 2}]


async def test_the_page_ends_with_the_reason_of_a_refusal(
    database: Database, tokens: str, tmp_path: Path
) -> None:
    async with reading(database.reader, tokens_file=tokens) as reader:
        url = f"http://127.0.0.1:{reader.api.base_url.port}{EVENTS}"
        async with watching(tmp_path, url, "wrong") as process, asyncio.timeout(DEADLINE):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"Refused: invalid token" in errors
