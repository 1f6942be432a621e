"""The settings: read once from a mapping such as `os.environ`, and passed down in groups.

Each setting is an environment variable `EXECUTION_EVENTS_…`; a secret can also come from the file
that `EXECUTION_EVENTS_…_FILE` names.
"""

import dataclasses
import re
from collections import defaultdict
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


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        digits = value.isascii() and value.isdigit() and len(value) < 100
        if not digits or not low <= int(value) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
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
            "with / ? # @ [ ] and non-ASCII characters of user and password percent-encoded"
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
            "expected https://host/path, or http:// to 127.0.0.1, ::1 or localhost: keys fetched "
            "over plain HTTP could be replaced on the network"
        )
    return value


def _setting(
    variable: str,
    doc: str,
    default: Any,
    parse: Callable[[str], Any] = _text,
    *,
    secret: bool = False,
) -> Any:
    metadata = {"variable": variable, "doc": doc, "parse": parse, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)


_port = _number(0, 65535)

_WORKERS_PATHS = ("spool_dir", "ssl_ca_file", "ssl_certificate_file", "ssl_key_file")
"""Paths that are absolute in `Settings`, with `~` expanded."""


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting, `reader_port` for example."""
    return PREFIX + setting.upper()


def _make_absolute(group: Any) -> None:
    """Make the paths of a group absolute: a worker may change its working directory."""
    for field in dataclasses.fields(group):
        path = getattr(group, field.name)
        if path is not None and field.name in _WORKERS_PATHS:
            try:
                path = str(Path(path).expanduser().absolute())
            except (RuntimeError, OSError) as error:
                raise SettingsError(
                    f"{variable_of(field.metadata['variable'])}: {error}, in {path}"
                ) from error
            object.__setattr__(group, field.name, path)


@dataclass(frozen=True, kw_only=True)
class KafkaSettings:
    """The brokers and the topic."""

    bootstrap_servers: str = _setting(
        "KAFKA_BOOTSTRAP_SERVERS", "Kafka brokers, as host:port,host:port,…", "127.0.0.1:9092"
    )
    security_protocol: str = _setting(
        "KAFKA_SECURITY_PROTOCOL",
        "protocol of the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        "PLAINTEXT",
        _one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    )
    sasl_mechanism: str = _setting(
        "KAFKA_SASL_MECHANISM",
        "SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        "PLAIN",
        _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    )
    sasl_username: str | None = _setting(
        "KAFKA_SASL_USERNAME", "SASL user, required by a SASL protocol", None
    )
    sasl_password: str | None = _setting("KAFKA_SASL_PASSWORD", "SASL password", None, secret=True)
    ssl_ca_file: str | None = _setting(
        "KAFKA_SSL_CA_FILE", "CA certificates, a PEM file (default: the system's)", None
    )
    ssl_certificate_file: str | None = _setting(
        "KAFKA_SSL_CERTIFICATE_FILE", "client certificate, a PEM file", None
    )
    ssl_key_file: str | None = _setting(
        "KAFKA_SSL_KEY_FILE", "private key of the client certificate, a PEM file", None
    )
    batch_limit: int = _setting(
        "KAFKA_BATCH_LIMIT",
        "maximum size in bytes of a decompressed batch; a larger batch halts its partition",
        32 * 2**20,
        _number(2**20, 2**31 - 1),
    )
    topic: str = _setting("TOPIC", "topic of the events", "execution-events")

    def __post_init__(self) -> None:
        _make_absolute(self)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """PostgreSQL, and the passwords that `migrate` sets for its roles."""

    url: str | None = _setting(
        "DATABASE_URL",
        "PostgreSQL database, as postgresql://user:password@host:port/database",
        None,
        _database_url,
        secret=True,
    )
    writer_password: str | None = _setting(
        "WRITER_PASSWORD",
        "password that `migrate` sets for the role execution_events_writer (default: no login)",
        None,
        secret=True,
    )
    reader_password: str | None = _setting(
        "READER_PASSWORD",
        "password that `migrate` sets for the role execution_events_reader (default: no login)",
        None,
        secret=True,
    )
    ops_password: str | None = _setting(
        "OPS_PASSWORD",
        "password that `migrate` sets for the role execution_events_ops (default: no login)",
        None,
        secret=True,
    )

    def require_url(self) -> str:
        """Return the database's URL; raise a `SettingsError` if it is not set."""
        if self.url is None:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL is not set: "
                "expected postgresql://user:password@host:port/database"
            )
        return self.url


@dataclass(frozen=True, kw_only=True)
class ConsumerSettings:
    """The consumer's group, batches and timeouts."""

    group: str = _setting("GROUP", "consumer group", "execution-events")
    batch_max_records: int = _setting(
        "BATCH_MAX_RECORDS", "maximum records per transaction", 10_000, _number(1, 1_000_000)
    )
    session_timeout: int = _setting(
        "SESSION_TIMEOUT",
        "seconds without a heartbeat until a consumer loses its partitions",
        8,
        _number(1, 300),
    )
    max_poll_interval: int = _setting(
        "MAX_POLL_INTERVAL",
        "seconds without a fetch until a consumer leaves its group",
        300,
        _number(1, 86400),
    )
    stall_timeout: int = _setting(
        "STALL_TIMEOUT",
        "seconds without progress on a partition with records until the consumer is not ready",
        60,
        _number(1, 86400),
    )


@dataclass(frozen=True, kw_only=True)
class PublisherSettings:
    """A worker's publisher and its spool."""

    spool_dir: str | None = _setting(
        "SPOOL_DIR", "directory of the publisher's spool (default: no spool)", None
    )
    spool_max_bytes: int = _setting(
        "SPOOL_MAX_BYTES",
        "maximum size in bytes of the events in one spool",
        2**30,
        _number(2**20, 2**50),
    )
    spool_full: str = _setting(
        "SPOOL_FULL",
        "behaviour of publish when the spool is full: raise (an error) or wait",
        "raise",
        _one_of("raise", "wait"),
    )
    publish_timeout: float = _setting(
        "PUBLISH_TIMEOUT",
        "timeout in seconds of publish without a spool",
        30,
        _number(1, 86400),
    )
    close_timeout: float = _setting(
        "CLOSE_TIMEOUT", "timeout in seconds for closing a publisher", 10, _number(1, 3600)
    )

    def __post_init__(self) -> None:
        _make_absolute(self)


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """The reader's address, limits and timeouts."""

    host: str = _setting("READER_HOST", "reader address", "127.0.0.1")
    port: int = _setting("READER_PORT", "reader port; 0 picks a free one", 8080, _port)
    max_connections: int = _setting(
        "READER_MAX_CONNECTIONS",
        "maximum connections to the reader; a new one closes the connection that was idle longest",
        4096,
        _number(1, 1_000_000),
    )
    head_timeout: int = _setting(
        "READER_HEAD_TIMEOUT",
        "timeout in seconds for receiving a request's head",
        10,
        _number(1, 3600),
    )
    idle_timeout: int = _setting(
        "READER_IDLE_TIMEOUT",
        "timeout in seconds of an idle connection; set it above the proxy's",
        75,
        _number(1, 3600),
    )
    write_timeout: int = _setting(
        "READER_WRITE_TIMEOUT",
        "timeout in seconds of a client that does not read its response",
        30,
        _number(1, 3600),
    )
    max_requests: int = _setting(
        "READER_MAX_REQUESTS",
        "maximum concurrent requests",
        256,
        _number(1, 1_000_000),
    )
    max_requests_per_token: int = _setting(
        "READER_MAX_REQUESTS_PER_TOKEN",
        "maximum concurrent requests per token or JWT subject",
        64,
        _number(1, 1_000_000),
    )
    max_streams: int = _setting(
        "READER_MAX_STREAMS",
        "maximum open streams",
        2000,
        _number(1, 1_000_000),
    )
    max_streams_per_token: int = _setting(
        "READER_MAX_STREAMS_PER_TOKEN",
        "maximum open streams per token or JWT subject",
        200,
        _number(1, 1_000_000),
    )


@dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Authentication by a token file or by JWTs; without either the reader has none."""

    tokens_file: str | None = _setting(
        "TOKENS_FILE",
        "file of the reader's tokens, a JSON object from SHA-256 in hex to namespaces; read again "
        "when it changes",
        None,
    )
    jwks_url: str | None = _setting(
        "JWKS_URL",
        "URL of the public keys of accepted JWTs, https://…",
        None,
        _jwks_url,
    )
    jwt_audience: str | None = _setting("JWT_AUDIENCE", "required audience of a JWT", None)
    jwt_issuer: str | None = _setting("JWT_ISSUER", "required issuer of a JWT", None)
    jwt_namespaces_claim: str = _setting(
        "JWT_NAMESPACES_CLAIM", "claim that holds a JWT's namespaces", "namespaces"
    )


@dataclass(frozen=True, kw_only=True)
class ManagementSettings:
    """The address of the management port."""

    host: str = _setting("MANAGEMENT_HOST", "address of /livez, /readyz and /metrics", "127.0.0.1")
    port: int = _setting("MANAGEMENT_PORT", "management port; 0 picks a free one", 8081, _port)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The format and the level of logs."""

    format: str = _setting(
        "LOG_FORMAT",
        "log format: text, json, or auto (text on a terminal, else json)",
        "auto",
        _one_of("auto", "text", "json"),
    )
    level: str = _setting(
        "LOG_LEVEL",
        "lowest log level: debug, info, warning or error",
        "info",
        _one_of("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of all commands; a field without a default is None until it is set."""

    kafka: KafkaSettings = KafkaSettings()
    database: DatabaseSettings = DatabaseSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    publisher: PublisherSettings = PublisherSettings()
    reader: ReaderSettings = ReaderSettings()
    auth: AuthSettings = AuthSettings()
    management: ManagementSettings = ManagementSettings()
    log: LogSettings = LogSettings()
    stop_timeout: int = _setting(
        "STOP_TIMEOUT", "timeout in seconds for stopping a service in order", 25, _number(5, 3600)
    )
    cache_dir: str | None = _setting(
        "CACHE_DIR",
        "directory of the downloads of `dev` (default: execution-events in the user's cache)",
        None,
    )


class SettingInfo(NamedTuple):
    """One setting as `execution-events settings` shows it; `value` holds no secret."""

    variable: str
    value: str | None
    source: str
    doc: str


class _Setting(NamedTuple):
    """A field of a group, or of `Settings` itself where `group` is None."""

    group: str | None
    field: dataclasses.Field[Any]

    @property
    def variable(self) -> str:
        return variable_of(self.field.metadata["variable"])

    def value(self, settings: Settings) -> Any:
        owner = settings if self.group is None else getattr(settings, self.group)
        return getattr(owner, self.field.name)


def _all_settings() -> Iterator[_Setting]:
    for outer in dataclasses.fields(Settings):
        if "variable" in outer.metadata:
            yield _Setting(None, outer)
        else:
            for field in dataclasses.fields(outer.default):  # type: ignore[arg-type]
                yield _Setting(outer.name, field)


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings in `environ`; raise a `SettingsError` that names a wrong variable."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    own: dict[str, Any] = {}
    for setting in _all_settings():
        found = _find(setting, environ)
        if found is not None:
            variable, text = found
            metadata = setting.field.metadata
            try:
                value = metadata["parse"](text)
            except ValueError as error:
                shown = "" if metadata["secret"] else f', not "{_escaped(text)}"'
                raise SettingsError(f"{variable}: {error}{shown}") from error
            (own if setting.group is None else groups[setting.group])[setting.field.name] = value
    settings = dataclasses.replace(Settings(), **own)
    for name, values in groups.items():
        group = dataclasses.replace(getattr(settings, name), **values)
        settings = dataclasses.replace(settings, **{name: group})
    _check_kafka(settings.kafka)
    _check_auth(settings.auth)
    return settings


def _check_kafka(kafka: KafkaSettings) -> None:
    if kafka.security_protocol.startswith("SASL") and None in (
        kafka.sasl_username,
        kafka.sasl_password,
    ):
        raise SettingsError(
            f"{PREFIX}KAFKA_SECURITY_PROTOCOL: {kafka.security_protocol} needs "
            f"{PREFIX}KAFKA_SASL_USERNAME and {PREFIX}KAFKA_SASL_PASSWORD"
        )


def _check_auth(auth: AuthSettings) -> None:
    if auth.tokens_file is not None and auth.jwks_url is not None:
        raise SettingsError(
            f"{PREFIX}JWKS_URL and {PREFIX}TOKENS_FILE are both set: set one of them"
        )
    if auth.jwks_url is not None and None in (auth.jwt_audience, auth.jwt_issuer):
        raise SettingsError(
            f"{PREFIX}JWKS_URL needs {PREFIX}JWT_AUDIENCE and {PREFIX}JWT_ISSUER: "
            "without them tokens issued for other services would be accepted"
        )


def describe(environ: Mapping[str, str]) -> Iterator[SettingInfo]:
    """Yield every setting with its value and source; secrets are hidden."""
    settings = load(environ)
    for setting in _all_settings():
        found = _find(setting, environ)
        value = setting.value(settings)
        yield SettingInfo(
            variable=setting.variable,
            value=None if value is None else _shown(setting.field, str(value)),
            source="default" if found is None else found[0],
            doc=setting.field.metadata["doc"],
        )


def variables(settings: Settings) -> dict[str, str]:
    """Return the environment that `load` reads these settings from, without defaults."""
    return {
        setting.variable: str(value)
        for setting in _all_settings()
        if (value := setting.value(settings)) != setting.field.default
    }


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return the variables with our prefix that are not settings, sorted."""
    known = set()
    for setting in _all_settings():
        known.add(setting.variable)
        if setting.field.metadata["secret"]:
            known.add(f"{setting.variable}_FILE")
    return sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_") and name not in known
    )


def _find(setting: _Setting, environ: Mapping[str, str]) -> tuple[str, str] | None:
    variable = setting.variable
    file_variable = f"{variable}_FILE"
    if setting.field.metadata["secret"] and file_variable in environ:
        if variable in environ:
            raise SettingsError(f"{file_variable} and {variable} are both set: set one of them")
        try:
            return file_variable, Path(environ[file_variable]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file_variable}: cannot read the file: {error}") from error
    if variable in environ:
        return variable, environ[variable]
    return None


def _escaped(text: str) -> str:
    """Return the text on one line, without control characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _shown(field: dataclasses.Field[Any], value: str) -> str:
    if not field.metadata["secret"]:
        return value
    if field.metadata["parse"] is _database_url:
        url = urlsplit(value)
        host = url.netloc.rpartition("@")[2]
        user = f"{url.username}:***@" if url.username else ""
        return f"{url.scheme}://{user}{host}{url.path}"
    return "***"
