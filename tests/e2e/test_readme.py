"""The README: its commands and its example run, and its tables are complete."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from execution_events.settings import Settings
from tests.support.configuration import configured
from tests.support.consumers import DEADLINE, until
from tests.support.processes import COMMAND, Service, environment, processes_of, run_cli
from tests.support.published import occurrences
from tests.support.seed import SEED_BODY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
[EXAMPLE] = re.findall(r"```python\n(.*?)\n```", README, re.DOTALL)


async def test_the_tour_of_run_it() -> None:
    run, curl, worker, listed, watch, tail, test = BLOCKS
    assert (run, test) == ("make run", "make test")
    with tempfile.TemporaryDirectory(prefix="execution-events-readme-") as directory:
        # An unprivileged account must reach PostgreSQL's data when root runs the tests.
        Path(directory).chmod(0o711)
        data = Path(directory) / "data"
        # The README's own port and directory may be in use on this machine.
        arguments = f"ARGS=--data-dir {data} --reader-port 0"
        make = ("make", "--directory", str(ROOT), run.removeprefix("make "), arguments)
        async with Service(make, Path(directory) / "log") as running:

            async def ready() -> bool:
                assert running.process.returncode is None, running.output
                return (data / "endpoints.json").exists()

            await until(ready, "endpoints.json")
            endpoints = json.loads((data / "endpoints.json").read_text())

            async def answered(command: str, *, status: int = 0, **variables: str) -> str:
                here = command.replace("http://127.0.0.1:8080", endpoints["reader"])
                done = await asyncio.to_thread(
                    subprocess.run,
                    shlex.split(here),
                    cwd=ROOT,
                    env={**os.environ, **variables},
                    capture_output=True,
                    timeout=DEADLINE,
                )
                assert done.returncode == status, done.stderr.decode()
                return done.stdout.decode()

            assert curl.replace("http://127.0.0.1:8080", endpoints["reader"]) in running.output
            assert await answered(curl) == SEED_BODY

            program = Path(directory) / "worker.py"
            program.write_text(EXAMPLE)
            variables = dict(re.findall(r"export (\w+)=(\S+)", running.output))
            assert len(variables) == 2
            assert worker == ".venv/bin/python worker.py"
            await answered(shlex.join([sys.executable, str(program)]), **variables)

            async def settled() -> bool:
                return '"state":"succeeded"' in await answered(listed)

            await until(settled, "the worker's execution is listed")
            [execution] = json.loads(await answered(listed))
            assert (execution["executionId"], execution["events"]) == ("my-execution", 3)
            # curl's exit code of a timeout: a watch has no end.
            watched = await answered(f"{watch} --max-time 3", status=28)
            assert (watched.count("event: reset"), watched.count('"metadata"')) == (1, 3)
            assert tail.startswith(".venv/bin/execution-events tail ")
            following = [*tail.split()[1:], "--reader", endpoints["reader"], "--no-follow"]
            assert len((await run_cli(*following)).splitlines()) == 3
            # make forwards the signal and waits.
            await running.stop(signal.SIGTERM)
        assert processes_of(data) == []


async def test_the_example_publishes(settings: Settings, tmp_path: Path) -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 15
    for variables in ({}, {"EXECUTION_EVENTS_SPOOL_DIR": str(tmp_path / "spool")}):
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", EXAMPLE),
            env=environment(configured(settings, database_url=None), **variables),
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE):
            _, errors = await worker.communicate()
        assert (worker.returncode, errors.decode()) == (0, "")
    published = [each.reason.partition("##")[2] for each in await occurrences(settings)]
    assert published == ["ActionStart", "PullImage", "SuccessfulFinish"] * 2


def test_the_map_has_every_room_and_no_other() -> None:
    package = "services/execution_events/"
    rows = re.findall(
        r"^\| (`.*?`) \|", README.partition("## Map")[2].partition("\n## ")[0], re.MULTILINE
    )
    named = {path for row in rows for path in re.findall(r"`(.*?)`", row)}
    assert [p for p in named if not ((ROOT / p).exists() or (ROOT / package / p).exists())] == []
    rooms = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / package).iterdir()
        if not path.name.startswith(("__", "py.typed"))
    }
    assert rooms == {path.removeprefix(package) for path in named if path not in _TOP}


_TOP = {"schemas/", "infra/", "tests/"}


def test_the_extras_to_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"pip install '[^']*\[(\w+)\]'", README))
    assert named
    assert named <= project["optional-dependencies"].keys()
    assert f"execution_events-{project['version']}-py3-none-any.whl" in README


def test_a_command_names_the_extra_of_its_row() -> None:
    rows = re.findall(r"^\| (.*?) \| `pip install '?\.(?:\[(\w+)\])?'?` \| (.*?) \|", README, re.M)
    extras = {name: extra for row, extra, _ in rows for name in re.findall(r"`(.*?)`", row)}
    modules = ROOT / "services/execution_events/cli/commands"
    for name, extra in extras.items():
        source = (modules / f"{name.replace('-', '_')}.py").read_text()
        assert set(re.findall(r'with extra\("(\w+)"\)', source)) == {extra} - {""}, name
    assert extras.keys() >= {"publish", "consumer", "migrate", "reader", "tail", "dev"}
    assert [row for row, extra, wheel in rows if f"whl{extra and f'[{extra}]'}" not in wheel] == []


def test_every_command_is_in_its_table() -> None:
    help_text = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"^    ([a-z-]+)", help_text, re.MULTILINE))
    table = README.partition("## Commands")[2].partition("## Map")[0]
    named = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert commands == {word.split()[0] for row in named for word in re.findall(r"`(.*?)`", row)}
