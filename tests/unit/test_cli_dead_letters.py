"""`dead-letters` and `prune`: wrong usage is refused before a connection to PostgreSQL."""

from datetime import UTC, datetime

import pytest

from execution_events.cli.dead_letter_format import paragraphs
from execution_events.cli.main import main
from execution_events.store.write.dead_letters import Content, ListedDeadLetter


@pytest.mark.parametrize(
    "arguments",
    [
        ["dead-letters", "retry"],
        ["dead-letters", "discard"],
        ["dead-letters", "discard", "--all", "7"],
        ["dead-letters", "retry", "--all", "--partition", "0"],
        ["dead-letters", "list", "0"],
        ["dead-letters", "list", "9223372036854775808"],
        ["dead-letters", "list", "9" * 5000],
        ["dead-letters", "list", "--partition", "-1"],
        ["dead-letters", "list", "--partition", "2147483648"],
        ["dead-letters", "list", "--reason", "not-json"],
        ["dead-letters", "list", "--since", "2026-01-01T00:00:00"],
        ["dead-letters", "list", "--since", "yesterday"],
        ["dead-letters", "list", "--until", "0001-01-01T00:00:00+23:00"],
        ["dead-letters", "list", "--state", "closed"],
        ["dead-letters", "show"],
        ["dead-letters", "show", "1", "--json", "--raw"],
        ["prune"],
        ["prune", "--older-than", "0d"],
        ["prune", "--older-than", "90"],
        ["prune", "--older-than", "1.5d"],
        ["prune", "--older-than", "100000d"],
        ["prune", "--older-than", "-1d"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_wrong_usage_exits_2_and_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"usage: execution-events {arguments[0]}")
    assert output.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["dead-letters", "retry", "--partition", "0"],
        ["dead-letters", "discard", "--all"],
        ["dead-letters", "list", "--since", "2026-01-01T08:00:00+08:00"],
        ["prune", "--older-than", "12h", "--dry-run"],
    ],
    ids=" ".join,
)
def test_right_usage_connects_to_the_database(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unused_port: int,
) -> None:
    monkeypatch.setenv(
        "EXECUTION_EVENTS_DATABASE_URL", f"postgresql://u:p@127.0.0.1:{unused_port}/d"
    )
    assert main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"execution-events: PostgreSQL at 127.0.0.1:{unused_port} cannot be")


def test_a_record_cannot_forge_lines_of_show() -> None:
    forged = b"x\nSHA-256    0\tx"
    content = Content(
        key=forged,
        key_bytes=len(forged),
        value=b"a\nb\x1b",
        value_sha256=b"\1",
        header_count=1,
        headers=[(forged.decode(), forged)],
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    letter = ListedDeadLetter(
        *(1, "events", 0, 0, -1, forged, 4, b"a", "not_json", "detail", now, "open", 0),
        *(None, None, None, None, None, False),
    )
    lines = list(paragraphs(letter, content))
    assert all("\n" not in line and "\t" not in line for line in lines[:-1])
    # The value is the last paragraph.
    assert lines[-1] == "a\nb\\x1b"
