"""The stack of `dev`: choices that need no server."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from execution_events.dev import stack
from execution_events.embedded import DataDirectory, own_environment


async def test_another_port_than_the_usual_one_is_said_with_the_reason(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def say(_: str, line: str) -> None:
        printed.append(line)

    async with DataDirectory(tmp_path / "data") as directory:
        with socket.create_server(("127.0.0.1", 0)) as server:
            taken = server.getsockname()[1]
            monkeypatch.setattr(stack, "_READER_PORT", taken)
            port = stack._reader_port(directory, None, say)
            assert printed == [f"port {taken} is taken: the reader uses {port} (--reader-port)"]
        assert stack._reader_port(directory, None, say) == port
        assert printed[1] == f"port {taken} was taken: the reader uses {port} (--reader-port)"
        assert stack._reader_port(directory, unused_port, say) == unused_port
    assert len(printed) == 2


def test_children_get_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = (
        *("EXECUTION_EVENTS_SPOOL_DIR", "EXECUTION_EVENTS_DATABASE_URL_FILE", "PGSSLMODE"),
        *("PGTARGETSESSIONATTRS", "http_proxy", "HTTPS_PROXY", "no_proxy", "all_proxy"),
        *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH", "KAFKA_OPTS"),
    )
    for name in hostile:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    found = own_environment()
    assert found.keys().isdisjoint(hostile)
    assert found["LANG"] == "C.UTF-8"
    assert "PATH" in found


def test_lost_output_stops_nothing_and_is_said_once() -> None:
    program = (
        "import sys\n"
        "from execution_events.dev.supervisor import printer\n"
        "from execution_events.embedded import ProgressLine\n"
        "say = printer(False)\n"
        "ProgressLine(sys.stdout)(1, 1, 1)\n"
        "say('dev', 'ready')\n"
        "say('dev', 'stopped')\n"
    )
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    lost = "output_lost  error=No space left on device continues=True\n"
    assert (ended.returncode, ended.stderr) == (0, lost)
