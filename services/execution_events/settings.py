"""Settings: one value, read once from a mapping such as `os.environ`, and passed down.

Each field of `Settings` is the variable `EXECUTION_EVENTS_<FIELD>`; a secret can also come from
the file that `EXECUTION_EVENTS_<FIELD>_FILE` names.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from execution_events.errors import SettingsError

PREFIX = "EXECUTION_EVENTS_"
TOPIC_PARTITIONS = 6
TOPIC_RETENTION_DAYS = 30
"""Defaults of `topic create` and `dev`."""

# Stricter than urlsplit, whose errors show the password, and which ends it at any / ? or #.
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]+)?"
_DATABASE_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/?#\[\]\s\x7f-\U0010ffff]*@)?"
    rf"{_HOST}(?:,{_HOST})*(?:/[^@?#\s]*)?(?:\?[^@#\s]*)?"
)

_URL = re.compile(r"[a-z]+://[A-Za-z0-9._:\[\]-]+(?:/[!$-;=?-Z_a-z~]*)?(?:\?[!$-;=?-Z_a-z~]*)?")
"""Without user, password and fragment."""


def _text(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("expected printable text")
    return value


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdigit()) or not least <= int(value) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(value)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return parse


def _database_url(value: str) -> str:
    if not _DATABASE_URL.fullmatch(value):
        raise ValueError(
            "expected postgresql://user:password@host:port/database, "
            "with / ? # @ [ ] and all beyond ASCII percent-encoded in user and password"
        )
    return value


def _jwks_url(value: str) -> str:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    safe = url.scheme == "https" or (
        url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")
    )
    if not (safe and url.hostname and _URL.fullmatch(value)) or port == 0:
        raise ValueError(
            "expected https://host/path, or http:// on this machine's own 127.0.0.1, ::1 or "
            "localhost: whoever can change the keys on their way can sign any token"
        )
    return value


def _setting(
    doc: str, default: Any, parse: Callable[[str], Any] = _text, *, secret: bool = False
) -> Any:
    return dataclasses.field(
        default=default, metadata={"doc": doc, "parse": parse, "secret": secret}
    )


_port = _number(0, 65535)

_WORKERS_PATHS = (
    "spool_dir",
    "kafka_ssl_ca_file",
    "kafka_ssl_certificate_file",
    "kafka_ssl_key_file",
)
"""Are absolute in `Settings`, with `~` as the home directory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of all commands. Every field has a default, or is None until it is set."""

    kafka_bootstrap_servers: str = _setting("Kafka brokers, host:port,…", "127.0.0.1:9092")
    kafka_security_protocol: str = _setting(
        "how to speak to the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        "PLAINTEXT",
        _one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    )
    kafka_sasl_mechanism: str = _setting(
        "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        "PLAIN",
        _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    )
    kafka_sasl_username: str | None = _setting("the user, with a SASL protocol", None)
    kafka_sasl_password: str | None = _setting("its password", None, secret=True)
    kafka_ssl_ca_file: str | None = _setting("CA certificates (default: the system's)", None)
    kafka_ssl_certificate_file: str | None = _setting("client certificate, PEM", None)
    kafka_ssl_key_file: str | None = _setting("its private key, PEM", None)
    kafka_batch_limit: int = _setting(
        "maximum bytes that a compressed batch of a producer may expand to; a larger one halts its "
        "partition",
        32 * 2**20,
        _number(2**20, 2**31 - 1),
    )
    topic: str = _setting("the topic of the events", "execution-events")
    group: str = _setting("the consumers' group", "execution-events")
    database_url: str | None = _setting(
        "PostgreSQL, postgresql://user:password@host:port/database",
        None,
        _database_url,
        secret=True,
    )
    writer_password: str | None = _setting(
        "`migrate` lets the role execution_events_writer log in with it", None, secret=True
    )
    reader_password: str | None = _setting(
        "`migrate` lets the role execution_events_reader log in with it", None, secret=True
    )
    ops_password: str | None = _setting(
        "`migrate` lets the role execution_events_ops log in with it", None, secret=True
    )
    batch_max_records: int = _setting(
        "the most records of one transaction", 10_000, _number(1, 1_000_000)
    )
    session_timeout: int = _setting(
        "seconds without a heartbeat after which a consumer's partitions go to others",
        8,
        _number(1, 300),
    )
    max_poll_interval: int = _setting(
        "seconds without a fetch after which a consumer leaves its group",
        300,
        _number(1, 86400),
    )
    stop_timeout: int = _setting(
        "seconds that a service may take to stop in order", 25, _number(5, 3600)
    )
    stall_timeout: int = _setting(
        "seconds without progress, with records waiting, until a consumer is not ready",
        60,
        _number(1, 86400),
    )
    spool_dir: str | None = _setting(
        "where a publisher keeps events until Kafka has them (default: nowhere)", None
    )
    spool_max_bytes: int = _setting(
        "the most bytes of events that one spool may hold", 2**30, _number(2**20, 2**50)
    )
    spool_full: str = _setting(
        "what publishing does when the spool is full: raise an error, or wait",
        "raise",
        _one_of("raise", "wait"),
    )
    publish_timeout: float = _setting(
        "seconds that publishing without a spool waits for Kafka", 30, _number(1, 86400)
    )
    close_timeout: float = _setting(
        "seconds that closing a publisher may wait for Kafka", 10, _number(1, 3600)
    )
    reader_host: str = _setting("the address that the reader serves", "127.0.0.1")
    reader_port: int = _setting("its port; 0 for any", 8080, _port)
    reader_max_connections: int = _setting(
        "the most connections to the reader; a further one takes the place of the longest idle",
        4096,
        _number(1, 1_000_000),
    )
    reader_head_timeout: int = _setting(
        "seconds in which a client must have sent the head of its request", 10, _number(1, 3600)
    )
    reader_idle_timeout: int = _setting(
        "seconds that a connection is kept for the next request; more than the proxy's",
        75,
        _number(1, 3600),
    )
    reader_write_timeout: int = _setting(
        "seconds until a client that does not read its answer is cut off", 30, _number(1, 3600)
    )
    reader_max_requests: int = _setting(
        "the most requests that are answered at a time", 256, _number(1, 1_000_000)
    )
    reader_max_requests_per_token: int = _setting(
        "the most of one token, or of one subject of a JWT", 64, _number(1, 1_000_000)
    )
    reader_max_streams: int = _setting(
        "the most streams that are open at a time", 2000, _number(1, 1_000_000)
    )
    reader_max_streams_per_token: int = _setting(
        "the most of one token, or of one subject of a JWT", 200, _number(1, 1_000_000)
    )
    tokens_file: str | None = _setting(
        "the reader's tokens: a JSON object of each token's SHA-256 in hex and its namespaces; "
        "read again when it changes",
        None,
    )
    jwks_url: str | None = _setting(
        "the public keys of the JWTs that the reader accepts, https://…", None, _jwks_url
    )
    jwt_audience: str | None = _setting("the audience that a JWT must have", None)
    jwt_issuer: str | None = _setting("the issuer that a JWT must have", None)
    jwt_namespaces_claim: str = _setting("the claim with a JWT's namespaces", "namespaces")
    management_host: str = _setting("the address of /livez, /readyz and /metrics", "127.0.0.1")
    management_port: int = _setting("its port; 0 for any", 8081, _port)
    cache_dir: str | None = _setting(
        "where `dev` keeps downloads (default: the user's cache directory)", None
    )
    log_format: str = _setting(
        "text, json, or auto: text on a terminal, else json",
        "auto",
        _one_of("auto", "text", "json"),
    )
    log_level: str = _setting(
        "debug, info, warning or error", "info", _one_of("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        # Once: a worker may change its directory.
        for name in _WORKERS_PATHS:
            path = getattr(self, name)
            if path is not None:
                try:
                    path = str(Path(path).expanduser().absolute())
                except (RuntimeError, OSError) as error:
                    raise SettingsError(f"{variable_of(name)}: {error}, in {path!r}") from error
                object.__setattr__(self, name, path)

    def require_database_url(self) -> str:
        """The database's address, or a `SettingsError` that says how to give it."""
        if self.database_url is None:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL is not set: "
                "expected postgresql://user:password@host:port/database"
            )
        return self.database_url


class SettingInfo(NamedTuple):
    """One setting as `execution-events settings` shows it; `value` holds no secret."""

    variable: str
    value: str | None
    source: str
    doc: str


def load(environ: Mapping[str, str]) -> Settings:
    """The settings that `environ` states; raises `SettingsError` naming the wrong variable."""
    values = {}
    for field in dataclasses.fields(Settings):
        found = _find(field, environ)
        if found is not None:
            variable, text = found
            try:
                values[field.name] = field.metadata["parse"](text)
            except ValueError as error:
                shown = "" if field.metadata["secret"] else f", not {text!r}"
                raise SettingsError(f"{variable}: {error}{shown}") from error
    settings = Settings(**values)
    if settings.kafka_security_protocol.startswith("SASL") and (
        settings.kafka_sasl_username is None or settings.kafka_sasl_password is None
    ):
        raise SettingsError(
            f"{PREFIX}KAFKA_SECURITY_PROTOCOL: {settings.kafka_security_protocol} needs "
            f"{PREFIX}KAFKA_SASL_USERNAME and {PREFIX}KAFKA_SASL_PASSWORD"
        )
    if settings.tokens_file is not None and settings.jwks_url is not None:
        raise SettingsError(f"{PREFIX}JWKS_URL: {PREFIX}TOKENS_FILE is set too; set one of them")
    if settings.jwks_url is not None and None in (settings.jwt_audience, settings.jwt_issuer):
        raise SettingsError(
            f"{PREFIX}JWKS_URL needs {PREFIX}JWT_AUDIENCE and {PREFIX}JWT_ISSUER: "
            "without them tokens for others would be accepted"
        )
    return settings


def describe(environ: Mapping[str, str]) -> Iterator[SettingInfo]:
    """Every setting, with its value and where it came from; secrets are hidden."""
    settings = load(environ)
    for field in dataclasses.fields(Settings):
        found = _find(field, environ)
        value = getattr(settings, field.name)
        yield SettingInfo(
            variable=variable_of(field.name),
            value=None if value is None else _shown(field, str(value)),
            source="default" if found is None else found[0],
            doc=field.metadata["doc"],
        )


def unknown(environ: Mapping[str, str]) -> list[str]:
    """The variables with our prefix that no setting has: most likely misspelt."""
    known = set()
    for field in dataclasses.fields(Settings):
        known.add(variable_of(field.name))
        if field.metadata["secret"]:
            known.add(f"{variable_of(field.name)}_FILE")
    return sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_") and name not in known
    )


def variable_of(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return PREFIX + field.upper()


def _find(field: dataclasses.Field[Any], environ: Mapping[str, str]) -> tuple[str, str] | None:
    variable = variable_of(field.name)
    file_variable = f"{variable}_FILE"
    if field.metadata["secret"] and file_variable in environ:
        if variable in environ:
            raise SettingsError(f"{file_variable}: {variable} is set too; set one of them")
        try:
            return file_variable, Path(environ[file_variable]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file_variable}: cannot be read: {error}") from error
    if variable in environ:
        return variable, environ[variable]
    return None


def _shown(field: dataclasses.Field[Any], value: str) -> str:
    if not field.metadata["secret"]:
        return value
    if field.metadata["parse"] is _database_url:
        url = urlsplit(value)
        host = url.netloc.rpartition("@")[2]
        user = f"{url.username}:***@" if url.username else ""
        return f"{url.scheme}://{user}{host}{url.path}"
    return "***"
