"""The command line: help, usage, exit codes, and errors found before any work."""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules

import pytest

from execution_events.cli import commands as command_modules
from execution_events.cli.main import main, parser
from execution_events.settings import variable_of
from tests.support import golden
from tests.support.configuration import each_setting

EVENTS = [case.record.value or b"" for case in golden.load("seed.json")]


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the settings in the environment; restore logging."""
    for variable in [name for name in os.environ if name.startswith("EXECUTION_EVENTS_")]:
        monkeypatch.delenv(variable)
    package = logging.getLogger("execution_events")
    before = logging.root.handlers, logging.root.level, package.level
    yield
    logging.root.handlers, level, package_level = before
    logging.root.setLevel(level)
    package.setLevel(package_level)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener at the Kafka address in the settings."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv(
            variable_of("kafka_bootstrap_servers"), f"127.0.0.1:{server.getsockname()[1]}"
        )
        yield server


def commands(
    command: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yield every command and group of commands, with its path."""
    yield path, command
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*path, name))


COMMANDS = dict(commands(parser()))
REQUIRED = {
    ("prune",): ["--older-than", "1d"],
    ("dead-letters", "show"): ["1"],
    ("tail",): ["execution-1"],
}
"""Arguments that commands require."""


def run(*arguments: str) -> int:
    """Run a command in this process; return its exit code, also that of argparse."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def start(
    *arguments: str,
    without: Sequence[str] = (),
    stdout: int = subprocess.PIPE,
    encoding: str = "utf-8",
) -> subprocess.CompletedProcess[str]:
    """Run a command as a process, with the modules `without` missing."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
        "from execution_events.cli.main import main\n"
        "sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding=encoding,
        check=False,
    )


# Usage.


def test_help_needs_no_client_of_kafka_or_postgresql() -> None:
    """They would take memory in every service, and time at every start."""
    assert start("--help", without=("aiokafka", "asyncpg", "starlette")).returncode == 0


def test_every_command_exists() -> None:
    assert {
        (),
        ("consumer",),
        ("dead-letters",),
        ("dead-letters", "list"),
        ("dead-letters", "show"),
        ("dead-letters", "retry"),
        ("dead-letters", "discard"),
        ("prune",),
        ("topic", "accept"),
        ("dev",),
        ("migrate",),
        ("publish",),
        ("reader",),
        ("settings",),
        ("topic",),
        ("topic", "create"),
    } <= COMMANDS.keys()


def test_each_command_is_one_module() -> None:
    modules = {module.name for module in iter_modules(command_modules.__path__)}
    assert {name.replace("_", "-") for name in modules} == {path[0] for path in COMMANDS if path}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_explains_every_option(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run(*path, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['execution-events', *path])} ")
    for action in COMMANDS[path]._actions:
        assert all(option in text for option in action.option_strings)
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, action
        else:
            described = {choice.dest for choice in action._choices_actions if choice.help}
            assert described == action.choices.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["topic"],
        ["dead-letters"],
        ["dead-letters", "nothing"],
        ["settings", "--nothing"],
        ["settings", "nothing"],
        ["topic", "create", "--partitions", "0"],
        ["topic", "create", "--replication", "-1"],
        ["topic", "create", "--retention-days", "1.5"],
        ["dev", "--reader-port", "65536"],
        ["publish", "--timeout", "soon"],
        ["publish", "--timeout", "-1"],
        ["publish", "--timeout", "nan"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # If the arguments were accepted, publish would fail here with exit code 1.
    missing = [str(tmp_path / "missing")] if arguments[:1] == ["publish"] else []
    assert run(*arguments, *missing) == 2
    output = capsys.readouterr()
    assert output.err.startswith("usage: execution-events ")
    assert output.out == ""


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{version('execution-events')}\n"


# Settings.


@pytest.mark.parametrize("command", ["settings", "consumer", "reader", "migrate", "publish"])
def test_a_wrong_setting_exits_2_with_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = variable_of("reader_port")
    monkeypatch.setenv(variable, "http")
    assert run(command) == 2
    output = capsys.readouterr()
    assert output.out == ""
    [line] = output.err.splitlines()
    assert line.startswith(f"execution-events: {variable}: ")


@pytest.mark.parametrize("command", ["reader", "migrate", "migrate --check", "dead-letters list"])
def test_a_database_that_is_not_set_exits_2_with_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"execution-events: {variable_of('database_url')} is not set: ")


def test_an_unreachable_database_exits_1_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv(variable_of("database_url"), f"postgresql://u:p@127.0.0.1:{unused_port}/d")
    assert run("migrate", "--check") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"execution-events: PostgreSQL at 127.0.0.1:{unused_port} cannot be")


def test_settings_as_json_are_one_object_per_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable_of("topic"), "other")
    monkeypatch.setenv(variable_of("ops_password"), "s3cr3t")
    assert run("settings", "--json") == 0
    output = capsys.readouterr()
    settings = {line["variable"]: line for line in map(json.loads, output.out.splitlines())}
    assert settings.keys() == {variable_of(name) for name, *_ in each_setting()}
    assert all(line.keys() == {"variable", "value", "source", "doc"} for line in settings.values())
    topic, group = settings[variable_of("topic")], settings[variable_of("group")]
    assert (topic["value"], topic["source"]) == ("other", variable_of("topic"))
    assert (group["value"], group["source"]) == ("execution-events", "default")
    assert settings[variable_of("database_url")]["value"] is None
    assert "s3cr3t" not in output.out + output.err


def test_settings_show_every_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable_of("topic"), "other")
    assert run("settings") == 0
    output = capsys.readouterr()
    assert f"{variable_of('topic')}=other\n" in output.out
    assert f"{variable_of('group')}=execution-events  [default]\n" in output.out
    assert f"{variable_of('database_url')}=(not set)  [default]\n" in output.out
    assert output.err == ""


@pytest.mark.parametrize("path", [p for p, c in COMMANDS.items() if c.get_default("run")])
def test_every_command_reports_a_misspelt_setting(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS[path]._defaults, "run", lambda *_: 7)
    monkeypatch.setattr("execution_events.cli.main.parser", lambda: COMMANDS[()])
    monkeypatch.setenv("EXECUTION_EVENTS_DATABSE_URL", "x")
    assert run(*path, *REQUIRED.get(path, ())) == 7
    assert capsys.readouterr().err == (
        "execution-events: EXECUTION_EVENTS_DATABSE_URL is not a setting and has no effect: "
        f"did you mean {variable_of('database_url')}?\n"
    )


# Publishing nothing.


@pytest.mark.parametrize(
    ("content", "positions"),
    [
        (b"%(good)b\nnot json\n", ["line 2: not JSON"]),
        (b"%(good)b\n\n{}\n", ["line 3: Object missing required field `executionId`"]),
        (
            b'%(good)b\n{"executionId":"e","metadata":{"name":"","namespace":"n"}}',
            ["line 2: ", "$.metadata.name"],
        ),
        (
            b"\n".join([b"[]", b"{}", b"null", b'"\xff"', b"{" * 100_000]),
            ["not a JSON array"],
        ),
        (
            b"\n".join([b"{}", b"null", b'"\xff"', b'{"a":' * 100_000]),
            ["line 1: ", "line 2: ", "line 3: ", "line 4: "],
        ),
        (b"  [%(good)b,{},%(good)b,1]", ["event 2: ", "event 4: "]),
        (b"[%(good)b,", ["not a JSON array"]),
        (b"[" * 100_000, ["not a JSON array"]),
        (b'[{"a":"\xff"}]', ["event 1: "]),
        (b"{}\n" * 30, ["line 1: ", "line 10: ", "and 20 more"]),
        (b"\xef\xbb\xbf%(good)b", ["begins with a byte order mark", "save it as UTF-8"]),
        ("é".encode("utf-16"), ["begins with UTF-16", "save it as UTF-8"]),
        (b'{\n  "a": 1\n}\n', ["put each event on one line, as `jq -c . FILE`"]),
        (b"{}", ["line 1: ", "add --execution-id ID for events without executionId"]),
        (b"\x1f\x8b\x08", ["not a complete gzip file"]),
    ],
    ids=[
        *("a line", "after an empty line", "a field", "after an array", "each line", "an array"),
        *("half an array", "nesting", "not UTF-8", "many", "a byte order mark"),
        *("UTF-16", "pretty-printed", "no execution id", "half a gzip file"),
    ],
)
def test_nothing_is_published_if_one_event_is_invalid(
    content: bytes,
    positions: list[str],
    broker: socket.socket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "events.json"
    file.write_bytes(content % {b"good": EVENTS[0]} if b"%(" in content else content)
    assert run("publish", "--timeout", "1", str(file)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("execution-events: ")
    assert all(position in output.err for position in positions), output.err
    with pytest.raises(BlockingIOError):
        broker.accept()


def test_the_execution_id_option_completes_events_and_is_checked(
    broker: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {name: value for name, value in json.loads(EVENTS[0]).items() if name != "executionId"}
    file = tmp_path / "events.json"
    file.write_text(json.dumps([event]))
    for arguments in ([], ["--execution-id", "a b"], ["--execution-id", ""]):
        assert run("publish", "--timeout", "1", str(file), *arguments) == 1
        assert "event 1: " in (error := capsys.readouterr().err)
        assert "executionId" in error
    with pytest.raises(BlockingIOError):
        broker.accept()


def test_an_unreadable_file_is_named(
    broker: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "missing", tmp_path):
        assert run("publish", str(path)) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"execution-events: {path}: ")
    with pytest.raises(BlockingIOError):
        broker.accept()


# Processes.


@pytest.mark.parametrize("command", ["settings", "settings --json", "--help"])
def test_a_closed_pipe_ends_a_reading_command_quietly(command: str) -> None:
    """As `execution-events settings | head -1` closes it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = start(*command.split(), stdout=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_full_disk_behind_standard_output_fails_a_reading_command() -> None:
    with Path("/dev/full").open("w") as full:
        ended = start("settings", stdout=full.fileno())
    assert (ended.returncode, ended.stderr) == (
        1,
        "execution-events: cannot write to standard output: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [0, 1, 2])
@pytest.mark.parametrize("command", ["settings", "publish", "spool list /", "--help"])
def test_a_closed_standard_stream_causes_no_traceback(command: str, closed: int) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-m"]
    ended = subprocess.run(
        [*shell, "execution_events.cli", *command.split()],
        env={**os.environ, variable_of("kafka_bootstrap_servers"): "127.0.0.1:1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    codes = {("publish", 0): 2, ("publish", 2): 1}
    assert ended.returncode == (1 if closed == 1 else codes.get((command, closed), 0))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_terminal_lacks_is_escaped_as_in_json(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv(variable_of("group"), "ü任😀")
    ended = start("settings", "--json", encoding=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    [group] = [line["value"] for line in lines if line["variable"] == variable_of("group")]
    assert group == "ü任😀"


@pytest.mark.parametrize(
    ("command", "role", "settings"),
    [
        ("consumer", "writer", ["kafka_bootstrap_servers", "database_url", "management_port"]),
        (
            "reader",
            "reader",
            ["database_url", "tokens_file", "jwks_url", "reader_port", "management_port"],
        ),
    ],
)
def test_the_help_of_a_service_says_what_it_needs_serves_and_exports(
    command: str, role: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    expected = [*map(variable_of, settings), f"execution_events_{role}"]
    expected += ["/livez", "/readyz", "/metrics"]
    expected += ["/v1/executions/{execution_id}/events"] * (command == "reader")
    assert [text for text in expected if text not in shown] == []


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("migrate", "asyncpg", "consumer"),
        ("dead-letters list", "asyncpg", "consumer"),
        ("consumer", "prometheus_client", "consumer"),
        ("reader", "uvicorn", "reader"),
        ("dev", "asyncpg", "embedded"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_installs_it(
    command: str, library: str, extra: str
) -> None:
    ended = start(*command.split(), without=[library])
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        "",
        f"execution-events: {library} is not installed: in a checkout, pip install '.[{extra}]';"
        f" elsewhere, pip install 'WHEEL[{extra}]' (README.md, Install it)\n",
    )


def test_a_fault_of_the_program_is_reported_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise KeyError("a\nb")

    monkeypatch.setitem(COMMANDS["settings",]._defaults, "run", fail)
    monkeypatch.setattr("execution_events.cli.main.parser", lambda: COMMANDS[()])
    assert run("settings") == 1
    assert capsys.readouterr().err == (
        "execution-events: unexpected KeyError: 'a\\nb'\n"
        "execution-events: report it, with the traceback that "
        f"{variable_of('log_level')}=debug shows\n"
    )
    monkeypatch.setenv(variable_of("log_level"), "debug")
    with pytest.raises(KeyError):
        run("settings")


@pytest.mark.parametrize("command", ["settings --json", "publish --help", "migrate --help"])
def test_the_dependencies_of_workers_suffice_for(command: str) -> None:
    services = ["asyncpg", "starlette", "uvicorn", "prometheus_client", "uvloop", "jgo"]
    ended = start(*command.split(), without=services)
    assert (ended.returncode, ended.stderr) == (0, "")
