"""`spool`: output and exit codes, without a reachable Kafka."""

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from execution_events.cli.commands import spool as command
from execution_events.cli.main import main
from execution_events.publisher.record import HOLD_MS, PendingRecord
from execution_events.publisher.spool.directory import open_spool
from execution_events.publisher.spool.spool import Spool
from execution_events.settings import KafkaSettings, PublisherSettings, variable_of

MAX_BYTES = 2**26


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


@pytest.fixture(autouse=True)
def directory(_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(variable_of("spool_dir"), str(tmp_path))
    return tmp_path


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets how many records Kafka acknowledges in all."""
    budget = [0]
    errors = {2: "no leader", 5: "no such partition", 7: "no such partition"}

    async def drain(
        kafka: KafkaSettings,
        settings: PublisherSettings,
        spool: Spool,
        *,
        timeout: float,
        progress: Callable[[int], None],
        reassign_partitions: bool = False,
    ) -> int:
        spool.store_errors(errors)
        fetched = spool.commit([], [], limit=budget[0], partition_of=lambda _: 0)
        budget[0] -= len(fetched)
        spool.commit([], [record.sequence for record in fetched], limit=0, partition_of=None)
        progress(len(fetched))
        spool.close()
        return spool.pending

    monkeypatch.setattr(command, "drain", drain)

    def acknowledge(number: int) -> None:
        budget[0] = number

    return acknowledge


@pytest.fixture
def make(directory: Path) -> Callable[..., Path]:
    """Return a function that creates a spool that no process uses."""

    def make(*, pending: int = 0, held: int = 0, refused: int = 0) -> Path:
        with ExitStack() as others:
            while (spool := others.enter_context(open_spool(directory, MAX_BYTES))).last:
                pass
            new = [
                PendingRecord(b"key", b"value", None, 1_700_000_000_000)
                for _ in range(pending + held + refused)
            ]
            spool.commit(new, [], limit=held + refused, partition_of=lambda _: 0)
            for sequence in range(1, refused + 1):
                spool.refuse(sequence, "too large")
            # The next call must create another file.
            if not new:
                [fetched] = spool.commit(
                    [PendingRecord(b"", b"", None, 0)], [], limit=1, partition_of=lambda _: 0
                )
                spool.commit([], [fetched.sequence], limit=0, partition_of=None)
        with sqlite3.connect(spool.path) as connection:
            connection.execute("UPDATE record SET attempted_at = attempted_at - ?", [HOLD_MS])
        connection.close()
        return spool.path

    return make


@pytest.fixture
def owned(directory: Path, make: Callable[..., Path]) -> Iterator[Path]:
    """A spool that this process uses."""
    path = make(pending=1)
    with open_spool(directory, MAX_BYTES) as spool:
        assert spool.path == path
        yield path


def damaged(path: Path) -> Path:
    path.write_bytes(b"\xa5" * 4096)
    return path


# Usage.


@pytest.mark.parametrize(
    "arguments",
    [
        ["spool"],
        ["spool", "nothing"],
        ["spool", "list", "a", "b"],
        ["spool", "drain", "--timeout", "0"],
        ["spool", "drain", "--json"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("usage: execution-events ")
    assert output.out == ""


@pytest.mark.parametrize("verb", ["list", "drain"])
def test_a_directory_is_needed(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(variable_of("spool_dir"))
    assert main(["spool", verb]) == 2
    assert capsys.readouterr().err == (
        f"execution-events: {variable_of('spool_dir')} is not set: set it, or give DIRECTORY\n"
    )
    assert main(["spool", verb, str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == (
        f"execution-events: {tmp_path / 'absent'}: no such directory\n"
    )
    assert not (tmp_path / "absent").exists()


# list.


def test_the_list_has_a_line_for_each_spool(
    owned: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    behind, empty, broken = make(pending=2, held=3, refused=1), make(), damaged(make(pending=1))
    assert main(["spool", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    listed = {line.split("  ")[0]: line.split("  ")[1:-1] for line in lines}
    assert listed[str(owned)][:4] == ["in use", "pending 1", "held 0", "refused 0"]
    assert listed[str(behind)] == [
        *("left behind", "pending 2", "held 3", "refused 1", "bytes 240"),
        "oldest 2023-11-14T22:13:20Z",
    ]
    assert listed[str(empty)] == ["left behind", "pending 0", "held 0", "refused 0", "bytes 0"]
    assert any(line.startswith(f"{broken}  left behind  damaged: ") for line in lines)


def test_the_list_as_json_is_one_object_per_line(
    owned: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    behind, broken = make(pending=2, held=3, refused=1), damaged(make(pending=1))
    assert main(["spool", "list", "--json"]) == 0
    spools = {s["path"]: s for s in map(json.loads, capsys.readouterr().out.splitlines())}
    assert spools.keys() == {str(owned), str(behind), str(broken)}
    assert spools[str(owned)]["state"] == "in_use"
    found = spools[str(behind)]
    assert found.pop("source").startswith("urn:uuid:")
    assert found == {
        "path": str(behind),
        "state": "left_behind",
        "problem": None,
        "pending": 2,
        "held": 3,
        "refused": 1,
        "bytes": 240,
        "oldest": "2023-11-14T22:13:20Z",
        "blocked": [],
    }
    unreadable = spools[str(broken)]
    assert unreadable.pop("problem").startswith("damaged: ")
    assert unreadable.keys() == {*found, "source"} - {"problem"}
    assert {name for name, value in unreadable.items() if value is not None} == {"path", "state"}


def test_the_list_shows_the_errors_of_blocked_partitions(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(pending=2)
    with Spool(path, MAX_BYTES) as spool:
        spool.store_errors({2: "no leader", 7: "no leader", 5: "the clock"})
        assert main(["spool", "list"]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == [
            "  blocked in partitions 2, 7: no leader",
            "  blocked in partition 5: the clock",
        ]
        assert main(["spool", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["blocked"] == [
            {"partitions": [2, 7], "error": "no leader"},
            {"partitions": [5], "error": "the clock"},
        ]
        spool.store_errors({-1: "Kafka is unavailable", 7: "no leader"})
    assert main(["spool", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocked"] == [
        {"partitions": [], "error": "Kafka is unavailable"}
    ]


def test_the_list_of_an_empty_directory_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["spool", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no spools\n"
    assert main(["spool", "list", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == ""


# drain.


def test_every_unused_spool_is_sent(
    owned: Path,
    make: Callable[..., Path],
    kafka: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second, empty = make(pending=2), make(pending=3), make()
    kafka(100)
    assert main(["spool", "drain"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        [
            f"{owned}: skipped: in use by a running process",
            f"{first}: sent 2",
            f"{second}: sent 3",
            f"{empty}: sent 0",
        ]
    )


def test_pending_events_are_reported_and_exit_1(
    make: Callable[..., Path], kafka: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(pending=3)
    kafka(2)
    assert main(["spool", "drain"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: sent 2, pending 1",
        "  blocked in partition 2: no leader",
        "  blocked in partitions 5, 7: no such partition",
    ]


def test_held_and_refused_events_are_counted_with_the_command_that_sends_them(
    directory: Path,
    make: Callable[..., Path],
    kafka: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make(pending=1, held=2, refused=3)
    kafka(100)
    assert main(["spool", "drain"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: sent 1, held 2, refused 3"
    command = f"execution-events spool drain --accept-duplicates {directory}"
    assert lines[1].endswith(f": {command}")
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out == f"{path}: sent 5\n"


def test_a_damaged_spool_does_not_block_the_others(
    directory: Path,
    make: Callable[..., Path],
    kafka: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = sorted([make(pending=2), make(pending=2)])
    damaged(paths[0])
    kafka(100)
    assert main(["spool", "drain"]) == 1
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: damaged: ")
    assert lines[1] == f"{paths[1]}: sent 2"
    assert "spool_set_aside" in output.err
    assert len(list(directory.glob("*.corrupt-*"))) == 1


def test_every_event_stays_while_kafka_is_unreachable(
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unused_port: int,
) -> None:
    monkeypatch.setenv(variable_of("kafka_bootstrap_servers"), f"127.0.0.1:{unused_port}")
    monkeypatch.setenv(variable_of("close_timeout"), "1")
    path = make(pending=3)
    assert main(["spool", "drain", "--timeout", "0.2"]) == 1
    summary, reason = capsys.readouterr().out.splitlines()
    assert summary == f"{path}: sent 0, pending 3"
    assert reason.startswith(f"  blocked: Kafka at 127.0.0.1:{unused_port}: ")
    assert main(["spool", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == reason
    with Spool(path, MAX_BYTES) as spool:
        assert spool.pending == 3
