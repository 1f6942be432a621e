"""Schemathesis tests a running reader against its OpenAPI document.

It generates valid and invalid requests and checks each response. It sends `Accept: */*` by default
and so opens no watch; each response and each run still has a timeout.
"""

import asyncio
import copy
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest

from execution_events.store.write.batches import BatchWriter
from tests.support import schemathesis_hooks
from tests.support.databases import Database
from tests.support.processes import environment
from tests.support.readers import EXECUTIONS, OPENAPI, Reader, named, reading, resolve
from tests.support.records import batch, log
from tests.support.tokens import ONE, token_file

PATH = "/v1/executions/{execution_id}/events"
LISTS = (EXECUTIONS, PATH)
EXECUTION = OPENAPI["components"]["parameters"]["ExecutionId"]["example"]
QUERY = {
    path: {
        parameter["name"]
        for parameter in map(resolve, OPENAPI["paths"][path]["parameters"])
        if parameter["in"] == "query"
    }
    for path in LISTS
}
NOT_GENERATED = {"marker", "lastEventId"}
RUN_SECONDS = 200
ANSWER_SECONDS = 5


class Sent(NamedTuple):
    """A request of schemathesis, and the status of the response."""

    method: str
    target: str
    status: int


@pytest.fixture
async def stored(writer: BatchWriter) -> None:
    """Events for a stream, all matched by the document's examples, and executions for pages."""
    events = [
        named(
            f"object.{number:03}",
            execution_id=EXECUTION,
            namespace="one",
            reason="失败##ActionFailed",
            message="元素失败. ## Element failed, not successfully.",
            type="Warning",
            elem_id="job-a-init",
        )
        for number in range(300)
    ]
    others = [named("object.0", execution_id=f"e-{number}", namespace="one") for number in range(3)]
    await writer.store(batch(log([*events, *others])))


@pytest.fixture
async def open_reader(database: Database, stored: None) -> AsyncIterator[Reader]:
    async with reading(database.reader) as reader:
        yield reader


def without(*parameters: str) -> dict[str, Any]:
    """Return the document without some parameters of lists."""
    document: dict[str, Any] = copy.deepcopy(OPENAPI)
    for path in LISTS:
        operations = document["paths"][path]
        operations["parameters"] = [
            each for each in operations["parameters"] if resolve(each)["name"] not in parameters
        ]
    return document


async def fuzz(
    reader: Reader, document: dict[str, Any], directory: Path, *options: str
) -> Sequence[Sent]:
    """Run schemathesis, check that it found no error, and return the requests it sent."""
    (directory / "openapi.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--no-color"]
    command += ["--url", str(reader.api.base_url), "--request-timeout", str(ANSWER_SECONDS)]
    command += ["--generation-deterministic", "--no-shrink"]
    command += ["--continue-on-failure", "--report", "json,har"]
    command += ["--report-json-path", "report.json", "--report-har-path", "sent.har", *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=environment(SCHEMATHESIS_HOOKS=schemathesis_hooks.__file__),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    report = json.loads((directory / "report.json").read_text())
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert report["errors"] == []
    entries = json.loads((directory / "sent.har").read_text())["log"]["entries"]
    assert len(entries) == report["test_cases"]["generated"]
    return [
        Sent(e["request"]["method"], e["request"]["url"], e["response"]["status"]) for e in entries
    ]


def statuses(sent: Sequence[Sent]) -> dict[tuple[str, str], set[int]]:
    """Return the statuses of the requests for each list with each parameter."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for request in sent:
        target = urlsplit(request.target)
        path = EXECUTIONS if target.path == EXECUTIONS else PATH
        for name, _ in parse_qsl(target.query, keep_blank_values=True):
            found[path, name].add(request.status)
    return found


async def test_every_operation_and_parameter(open_reader: Reader, tmp_path: Path) -> None:
    """Markers are left out: those generated from the document are always refused.

    So is the parameter of watches.
    """
    phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "40")
    sent = await fuzz(open_reader, without(*NOT_GENERATED), tmp_path, *phases)
    found = statuses(sent)
    for path in LISTS:
        for name in QUERY[path] - NOT_GENERATED:
            assert {200, 400} <= found[path, name], (path, name)
    assert {200, 304, 400, 405} <= {request.status for request in sent}


@pytest.mark.parametrize(("listed", "limit"), [(EXECUTIONS, 1), (PATH, 100)])
async def test_pages(open_reader: Reader, tmp_path: Path, listed: str, limit: int) -> None:
    """With markers of the reader, and mutations of them."""
    path = listed.replace("{execution_id}", EXECUTION)
    markers, query = [], f"?limit={limit}"
    for _ in range(2):
        page = await open_reader.get(f"{path}{query}")
        markers.append(page.headers["X-Next-Marker"])
        query = f"?limit={limit}&marker={markers[-1]}"
    document = without(*QUERY[listed] - {"marker", "limit"}, "execution_id")
    document["paths"] = {path: document["paths"][listed]}
    name = "ExecutionsMarker" if listed == EXECUTIONS else "Marker"
    document["components"]["parameters"][name]["schema"] = {"enum": markers}
    phases = ("--phases", "coverage,fuzzing", "--max-examples", "25")
    sent = await fuzz(open_reader, document, tmp_path, *phases)
    assert {200, 400} <= statuses(sent)[listed, "marker"]


async def test_lines(open_reader: Reader, tmp_path: Path) -> None:
    options = ("--phases", "examples,fuzzing", "--max-examples", "25")
    accept = ("--header", "Accept: application/x-ndjson")
    sent = await fuzz(open_reader, without(*NOT_GENERATED), tmp_path, *options, *accept)
    assert {200, 400} <= {request.status for request in sent}


async def test_tokens(database: Database, stored: None, tmp_path: Path) -> None:
    """Requests with a token are served; those without one, or with a wrong one, are refused."""
    tokens = tmp_path / "tokens.json"
    tokens.write_text(token_file())
    document = without(*NOT_GENERATED)
    # A reader without tokens answers without one; this has some.
    document["security"] = [{"token": []}, {"bearer": []}]
    options = ("--phases", "examples,coverage")
    async with reading(database.reader, tokens_file=str(tokens)) as reader:
        header = ("--header", f"X-Auth-Token: {ONE['X-Auth-Token']}")
        sent = await fuzz(reader, document, tmp_path, *options, *header)
    assert {200, 400, 401} <= {request.status for request in sent}
