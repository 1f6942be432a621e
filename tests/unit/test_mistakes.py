"""Plausible mistakes that no server is needed for: the message, the exit code and the next step.

`tests/integration/test_mistakes.py` has those that a server answers.
"""

import gzip
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from execution_events.cli.main import main
from tests.support import golden

EVENT = next(iter(golden.load("seed.json"))).record.value or b""
FILES = {
    "event.json": EVENT,
    "bom.json": b"\xef\xbb\xbf" + EVENT,
    "utf-16.json": EVENT.decode().encode("utf-16"),
    "pretty.json": b'{\n  "executionId": "e"\n}\n',
    "answer.json": b'[{"metadata":{"name":"a.1","namespace":"n"},"reason":"r","type":"Normal",'
    b'"elemType":"t","elemId":"e","actionName":"create"}]',
    "half.json": b"[" + EVENT + b",",
    "half.json.gz": gzip.compress(EVENT)[:-9],
    "events.yaml": b"executionId: e\n",
    "tokens.json": b'{"my-token": ["tenant"]}',
}


class Mistake(NamedTuple):
    """A command line with settings, and the lines that explain what is wrong.

    `{directory}` has `FILES`; a server listens on port `{taken}`, none on port `{free}`. A setting
    is without its prefix `EXECUTION_EVENTS_`, except for variables of libpq.
    """

    command: str
    settings: dict[str, str]
    code: int
    lines: str


URL = "postgresql://user:password@127.0.0.1:{free}/database"
READER = {"DATABASE_URL": URL, "READER_PORT": "0", "MANAGEMENT_PORT": "0"}

MISTAKES = {
    # Settings.
    "a word as a broker's port": Mistake(
        "publish",
        {"KAFKA_BOOTSTRAP_SERVERS": "localhost:abc"},
        2,
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS: expected host:port,host:port,… with ports from"
        ' 1 to 65535, not "localhost:abc"',
    ),
    "a broker's port that does not exist": Mistake(
        "consumer",
        {"KAFKA_BOOTSTRAP_SERVERS": "localhost:99999"},
        2,
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS: expected host:port,host:port,… with ports from"
        ' 1 to 65535, not "localhost:99999"',
    ),
    "a URL as a broker": Mistake(
        "topic create",
        {"KAFKA_BOOTSTRAP_SERVERS": "kafka://localhost:9092"},
        2,
        "EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS: expected host:port,host:port,… with ports from"
        ' 1 to 65535, not "kafka://localhost:9092"',
    ),
    "a topic with a space": Mistake(
        "topic create",
        {"TOPIC": "my topic"},
        2,
        "EXECUTION_EVENTS_TOPIC: expected 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or"
        ' .., not "my topic"',
    ),
    "a protocol that is none": Mistake(
        "consumer",
        {"KAFKA_SECURITY_PROTOCOL": "TLS"},
        2,
        "EXECUTION_EVENTS_KAFKA_SECURITY_PROTOCOL: expected one of PLAINTEXT, SSL, SASL_PLAINTEXT,"
        ' SASL_SSL, not "TLS"',
    ),
    "SASL without a user": Mistake(
        "consumer",
        {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
        2,
        "EXECUTION_EVENTS_KAFKA_SECURITY_PROTOCOL: SASL_SSL needs"
        " EXECUTION_EVENTS_KAFKA_SASL_USERNAME and EXECUTION_EVENTS_KAFKA_SASL_PASSWORD",
    ),
    "a word as a port": Mistake(
        "reader",
        {"READER_PORT": "http"},
        2,
        'EXECUTION_EVENTS_READER_PORT: expected a whole number from 0 to 65535, not "http"',
    ),
    "no database": Mistake(
        "reader",
        {},
        2,
        "EXECUTION_EVENTS_DATABASE_URL is not set: expected"
        " postgresql://user:password@host:port/database",
    ),
    "a database without a scheme": Mistake(
        "migrate",
        {"DATABASE_URL": "localhost/execution_events"},
        2,
        "EXECUTION_EVENTS_DATABASE_URL: expected postgresql://user:password@host:port/database,"
        " with a port from 1 to 65535, and / ? # @ [ ] and non-ASCII characters of user and"
        " password percent-encoded",
    ),
    "a database's port that does not exist": Mistake(
        "migrate",
        {"DATABASE_URL": "postgresql://localhost:99999/execution_events"},
        2,
        "EXECUTION_EVENTS_DATABASE_URL: expected postgresql://user:password@host:port/database,"
        " with a port from 1 to 65535, and / ? # @ [ ] and non-ASCII characters of user and"
        " password percent-encoded",
    ),
    "a misspelt setting": Mistake(
        "migrate",
        {"DATABSE_URL": URL},
        2,
        "EXECUTION_EVENTS_DATABSE_URL is not a setting and has no effect: did you mean"
        " EXECUTION_EVENTS_DATABASE_URL?\n"
        "EXECUTION_EVENTS_DATABASE_URL is not set: expected"
        " postgresql://user:password@host:port/database",
    ),
    "a misspelt password": Mistake(
        "migrate",
        {"DATABASE_URL": URL, "WRITR_PASSWORD": "secret"},
        1,
        "EXECUTION_EVENTS_WRITR_PASSWORD is not a setting and has no effect: did you mean"
        " EXECUTION_EVENTS_WRITER_PASSWORD?\n"
        "PostgreSQL at 127.0.0.1:{free} cannot be reached: Connection refused: start it, or correct"
        " EXECUTION_EVENTS_DATABASE_URL",
    ),
    "a secret's file that is missing": Mistake(
        "migrate",
        {"DATABASE_URL_FILE": "/run/secrets/database"},
        2,
        "EXECUTION_EVENTS_DATABASE_URL_FILE: cannot read the file /run/secrets/database: No such"
        " file or directory",
    ),
    "a secret given twice": Mistake(
        "migrate",
        {"DATABASE_URL": URL, "DATABASE_URL_FILE": "/run/secrets/database"},
        2,
        "EXECUTION_EVENTS_DATABASE_URL_FILE and EXECUTION_EVENTS_DATABASE_URL are both set: set one"
        " of them",
    ),
    "a variable of libpq": Mistake(
        "migrate",
        {"DATABASE_URL": URL, "PGTARGETSESSIONATTRS": "writable"},
        2,
        "EXECUTION_EVENTS_DATABASE_URL or PGTARGETSESSIONATTRS: target_session_attrs is expected"
        " to be one of the values in libpq's documentation, got 'writable'",
    ),
    # Servers that do not run.
    "no Kafka for publish": Mistake(
        "publish {directory}/event.json",
        {},
        1,
        "Kafka at 127.0.0.1:{free}: Connection refused: start Kafka, or correct"
        " EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS\n"
        "nothing was published",
    ),
    "no Kafka for topic create": Mistake(
        "topic create",
        {},
        1,
        "Kafka at 127.0.0.1:{free}: Connection refused: start Kafka, or correct"
        " EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS",
    ),
    "a broker's host that does not exist": Mistake(
        "topic create",
        {"KAFKA_BOOTSTRAP_SERVERS": "kafka.invalid:9092"},
        1,
        "Kafka at kafka.invalid:9092: Name or service not known: start Kafka, or correct"
        " EXECUTION_EVENTS_KAFKA_BOOTSTRAP_SERVERS",
    ),
    "no PostgreSQL": Mistake(
        "migrate --check",
        {"DATABASE_URL": URL},
        1,
        "PostgreSQL at 127.0.0.1:{free} cannot be reached: Connection refused: start it, or correct"
        " EXECUTION_EVENTS_DATABASE_URL",
    ),
    "a database's host that does not exist": Mistake(
        "dead-letters list",
        {"DATABASE_URL": "postgresql://user:password@database.invalid/d"},
        1,
        "PostgreSQL at database.invalid cannot be reached: Name or service not known: start it, or"
        " correct EXECUTION_EVENTS_DATABASE_URL",
    ),
    # The reader.
    "a reader for everybody": Mistake(
        "reader",
        READER | {"READER_HOST": "0.0.0.0"},
        2,
        "EXECUTION_EVENTS_READER_HOST: expected a loopback address such as 127.0.0.1, got 0.0.0.0;"
        " to serve others, set EXECUTION_EVENTS_TOKENS_FILE or EXECUTION_EVENTS_JWKS_URL",
    ),
    "an address that does not exist": Mistake(
        "reader",
        READER | {"READER_HOST": "reader.invalid"},
        2,
        "EXECUTION_EVENTS_READER_HOST: reader.invalid: Name or service not known: give an address"
        " of this machine",
    ),
    "a management port in use": Mistake(
        "reader",
        READER | {"MANAGEMENT_PORT": "{taken}"},
        1,
        "cannot listen on 127.0.0.1:{taken}: Address already in use: stop the program that listens"
        " there, or set EXECUTION_EVENTS_MANAGEMENT_PORT to another port; 0 picks a free one",
    ),
    "a reader's port in use": Mistake(
        "reader",
        READER | {"READER_PORT": "{taken}"},
        1,
        "cannot listen on 127.0.0.1:{taken}: Address already in use: stop the program that listens"
        " there, or set EXECUTION_EVENTS_READER_PORT to another port; 0 picks a free one",
    ),
    "a management address of another machine": Mistake(
        "reader",
        READER | {"MANAGEMENT_HOST": "192.0.2.1"},
        2,
        "cannot listen on 192.0.2.1:0: Cannot assign requested address: correct"
        " EXECUTION_EVENTS_MANAGEMENT_HOST or EXECUTION_EVENTS_MANAGEMENT_PORT",
    ),
    "a consumer beside a reader": Mistake(
        "consumer",
        {"DATABASE_URL": URL, "MANAGEMENT_PORT": "{taken}"},
        1,
        "cannot listen on 127.0.0.1:{taken}: Address already in use: stop the program that listens"
        " there, or set EXECUTION_EVENTS_MANAGEMENT_PORT to another port; 0 picks a free one",
    ),
    "two kinds of authentication": Mistake(
        "reader",
        READER | {"TOKENS_FILE": "tokens.json", "JWKS_URL": "https://issuer/keys"},
        2,
        "EXECUTION_EVENTS_JWKS_URL and EXECUTION_EVENTS_TOKENS_FILE are both set: set one of them",
    ),
    "keys without an audience": Mistake(
        "reader",
        READER | {"JWKS_URL": "https://issuer/keys"},
        2,
        "EXECUTION_EVENTS_JWKS_URL needs EXECUTION_EVENTS_JWT_AUDIENCE and"
        " EXECUTION_EVENTS_JWT_ISSUER: without them tokens issued for other services would be"
        " accepted",
    ),
    # Files of publish.
    "a file that does not exist": Mistake(
        "publish {directory}/evnets.json",
        {},
        2,
        "{directory}/evnets.json: No such file or directory: nothing was published; give a readable"
        " FILE",
    ),
    "a byte order mark": Mistake(
        "publish {directory}/bom.json",
        {},
        1,
        "{directory}/bom.json: nothing was published; the file begins with a byte order mark: save"
        " it as UTF-8 without a byte order mark",
    ),
    "a file of PowerShell": Mistake(
        "publish {directory}/utf-16.json",
        {},
        1,
        "{directory}/utf-16.json: nothing was published; the file begins with UTF-16: save it as"
        " UTF-8 without a byte order mark",
    ),
    "pretty-printed JSON": Mistake(
        "publish {directory}/pretty.json",
        {},
        1,
        "nothing was published; the first event does not end on its line: put each event on one"
        " line, as `jq -c . FILE` prints them, or all in a JSON array",
    ),
    "a response of the reader": Mistake(
        "publish {directory}/answer.json",
        {},
        1,
        "nothing was published; invalid events:\n"
        "  event 1: Object missing required field `executionId`\n"
        "add --execution-id ID for events without executionId, as in the reader's responses",
    ),
    "half an array": Mistake(
        "publish {directory}/half.json",
        {},
        1,
        "nothing was published; not a JSON array: Input data was truncated: give the complete"
        " array",
    ),
    "half a compressed file": Mistake(
        "publish {directory}/half.json.gz",
        {},
        1,
        "{directory}/half.json.gz: nothing was published; not a complete gzip file: Compressed file"
        " ended before the end-of-stream marker was reached",
    ),
    "YAML": Mistake(
        "publish {directory}/events.yaml",
        {},
        1,
        "nothing was published; invalid events:\n"
        "  line 1: not JSON: JSON is malformed: invalid character (byte 0)\n"
        "schemas/event.schema.json describes an event",
    ),
    # Arguments.
    "more replicas than the protocol has": Mistake(
        "topic create --replication 40000",
        {},
        2,
        "topic create: error: argument --replication: expected a whole number from 1 to 32767, not"
        ' "40000"',
    ),
    "more replicas in sync than there are": Mistake(
        "topic create --replication 1",
        {},
        2,
        "--min-insync-replicas: expected at most --replication, 1, not 2: no record could be"
        " acknowledged",
    ),
    "an age without a unit": Mistake(
        "prune --older-than 90",
        {},
        2,
        'prune: error: argument --older-than: expected days or hours, such as 90d or 12h, not "90"',
    ),
    "a wait without a unit": Mistake(
        "migrate --wait 60",
        {},
        2,
        'migrate: error: argument --wait: expected seconds or minutes, such as 60s or 5m, not "60"',
    ),
    "a retry of nothing": Mistake(
        "dead-letters retry",
        {},
        2,
        "dead-letters retry: error: give IDs, options that select dead letters, or --all",
    ),
    "no spool directory": Mistake(
        "spool list",
        {},
        2,
        "EXECUTION_EVENTS_SPOOL_DIR is not set: set it, or give DIRECTORY",
    ),
    "a spool directory that does not exist": Mistake(
        "spool drain {directory}/spol",
        {},
        2,
        "{directory}/spol: no such directory: correct EXECUTION_EVENTS_SPOOL_DIR, or give"
        " DIRECTORY",
    ),
    "dev without a home directory": Mistake(
        "dev",
        {"HOME": ""},
        2,
        "this user has no home directory: give a data directory by --data-dir",
    ),
}


@pytest.fixture
def ports(unused_port: int) -> Iterator[dict[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"free": unused_port, "taken": server.getsockname()[1]}


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the settings in the environment; restore logging."""
    for variable in [name for name in os.environ if name.startswith(("EXECUTION_EVENTS_", "PG"))]:
        monkeypatch.delenv(variable)
    package = logging.getLogger("execution_events")
    before = logging.root.handlers, logging.root.level, package.level
    yield
    logging.root.handlers, level, package_level = before
    logging.root.setLevel(level)
    package.setLevel(package_level)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(
    name: str,
    ports: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake = MISTAKES[name]
    for file, content in FILES.items():
        (tmp_path / file).write_bytes(content)
    values = {"directory": tmp_path, **ports}
    settings = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:{free}"} | mistake.settings
    if settings.pop("HOME", None) is not None:
        _lose_home(monkeypatch)
    for variable, value in settings.items():
        prefix = "" if variable.startswith("PG") else "EXECUTION_EVENTS_"
        monkeypatch.setenv(f"{prefix}{variable}", value.format(**values))
    try:
        code = main(mistake.command.format(**values).split())
    except SystemExit as ended:
        code = int(ended.code or 0)
    output = capsys.readouterr()
    # Services log as well, in JSON; argparse prints the usage.
    printed = [line for line in output.err.splitlines() if not line.startswith("{")]
    if printed[0].startswith("usage: "):
        printed = printed[-1:]
    lines = [line.removeprefix("execution-events").removeprefix(":").strip() for line in printed]
    expected = [line.strip() for line in mistake.lines.format(**values).splitlines()]
    assert (lines, code, output.out) == (expected, mistake.code, "")


def _lose_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as a user id that the system does not know."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_the_table_has_forty_mistakes() -> None:
    assert len(MISTAKES) >= 40
