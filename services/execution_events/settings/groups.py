"""The settings as values, in groups; each field has its variable, default and description."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from execution_events.errors import SettingsError
from execution_events.settings import values

PREFIX = "EXECUTION_EVENTS_"
TOPIC_PARTITIONS = 6
TOPIC_RETENTION_DAYS = 30
"""Defaults of `topic create` and `dev`."""


def _setting(
    variable: str,
    doc: str,
    default: Any,
    parse: Callable[[str], Any] = values.text,
    *,
    secret: bool = False,
) -> Any:
    metadata = {"variable": variable, "doc": doc, "parse": parse, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)


_port = values.number(0, 65535)

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
        "KAFKA_BOOTSTRAP_SERVERS",
        "Kafka brokers, as host:port,host:port,…",
        "127.0.0.1:9092",
        values.brokers,
    )
    security_protocol: str = _setting(
        "KAFKA_SECURITY_PROTOCOL",
        "protocol of the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        "PLAINTEXT",
        values.one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    )
    sasl_mechanism: str = _setting(
        "KAFKA_SASL_MECHANISM",
        "SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        "PLAIN",
        values.one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
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
        values.number(2**20, 2**31 - 1),
    )
    topic: str = _setting("TOPIC", "topic of the events", "execution-events", values.topic)

    def __post_init__(self) -> None:
        _make_absolute(self)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """PostgreSQL, and the passwords that `migrate` sets for its roles."""

    url: str | None = _setting(
        "DATABASE_URL",
        "PostgreSQL database, as postgresql://user:password@host:port/database",
        None,
        values.database_url,
        secret=True,
    )
    prepared_statements: str = _setting(
        "DATABASE_PREPARED_STATEMENTS",
        "prepared statements of the reader: true, or false behind a pooler in transaction mode",
        "true",
        values.one_of("true", "false"),
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

    @property
    def prepares_statements(self) -> bool:
        """True if the reader may prepare statements, in sessions of its own."""
        return self.prepared_statements == "true"

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
        "BATCH_MAX_RECORDS", "maximum records per transaction", 20_000, values.number(1, 1_000_000)
    )
    session_timeout: int = _setting(
        "SESSION_TIMEOUT",
        "seconds without a heartbeat until a consumer loses its partitions",
        8,
        values.number(1, 300),
    )
    max_poll_interval: int = _setting(
        "MAX_POLL_INTERVAL",
        "seconds without a fetch until a consumer leaves its group",
        300,
        values.number(1, 86400),
    )
    stall_timeout: int = _setting(
        "STALL_TIMEOUT",
        "seconds without progress on a partition with records until the consumer is not ready",
        60,
        values.number(1, 86400),
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
        values.number(2**20, 2**50),
    )
    spool_full: str = _setting(
        "SPOOL_FULL",
        "behaviour of publish when the spool is full: raise (an error) or wait",
        "raise",
        values.one_of("raise", "wait"),
    )
    publish_timeout: float = _setting(
        "PUBLISH_TIMEOUT",
        "timeout in seconds of publish without a spool",
        30,
        values.number(1, 86400),
    )
    close_timeout: float = _setting(
        "CLOSE_TIMEOUT", "timeout in seconds for closing a publisher", 10, values.number(1, 3600)
    )

    def __post_init__(self) -> None:
        _make_absolute(self)


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """The reader's address, limits and timeouts."""

    host: str = _setting("READER_HOST", "reader address", "127.0.0.1")
    port: int = _setting("READER_PORT", "reader port; 0 picks a free one", 8080, _port)
    cors_origins: str | None = _setting(
        "READER_CORS_ORIGINS",
        "origins of pages that may read responses in a browser, as https://host,https://host:port,…",
        None,
        values.origins,
    )
    drain_delay: int = _setting(
        "DRAIN_DELAY",
        "seconds of ordinary service after a stop has made the reader not ready, within the stop"
        " timeout",
        5,
        values.number(0, 3600),
    )
    max_connections: int = _setting(
        "READER_MAX_CONNECTIONS",
        "maximum connections to the reader; a new one closes the connection that was idle longest",
        4096,
        values.number(1, 1_000_000),
    )
    head_timeout: int = _setting(
        "READER_HEAD_TIMEOUT",
        "timeout in seconds for receiving a request's head",
        10,
        values.number(1, 3600),
    )
    idle_timeout: int = _setting(
        "READER_IDLE_TIMEOUT",
        "timeout in seconds of an idle connection; set it above the proxy's",
        75,
        values.number(1, 3600),
    )
    write_timeout: int = _setting(
        "READER_WRITE_TIMEOUT",
        "timeout in seconds of a client that does not read its response",
        30,
        values.number(1, 3600),
    )
    max_requests: int = _setting(
        "READER_MAX_REQUESTS",
        "maximum concurrent requests",
        256,
        values.number(1, 1_000_000),
    )
    max_requests_per_token: int = _setting(
        "READER_MAX_REQUESTS_PER_TOKEN",
        "maximum concurrent requests per token or JWT subject",
        64,
        values.number(1, 1_000_000),
    )
    max_streams: int = _setting(
        "READER_MAX_STREAMS",
        "maximum open streams",
        2000,
        values.number(1, 1_000_000),
    )
    max_streams_per_token: int = _setting(
        "READER_MAX_STREAMS_PER_TOKEN",
        "maximum open streams per token or JWT subject",
        200,
        values.number(1, 1_000_000),
    )


@dataclass(frozen=True, kw_only=True)
class AuthSettings:
    """Authentication by a token file or by JWTs; without either the reader has none."""

    tokens_file: str | None = _setting(
        "TOKENS_FILE",
        "file of the reader's tokens, a JSON object from SHA-256 in hex to namespaces, `*` alone "
        "for all of them; read again when it changes",
        None,
    )
    jwks_url: str | None = _setting(
        "JWKS_URL",
        "URL of the public keys of accepted JWTs, https://…",
        None,
        values.jwks_url,
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
        values.one_of("auto", "text", "json"),
    )
    level: str = _setting(
        "LOG_LEVEL",
        "lowest log level: debug, info, warning or error",
        "info",
        values.one_of("debug", "info", "warning", "error"),
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
        "STOP_TIMEOUT",
        "timeout in seconds for stopping a service in order",
        25,
        values.number(5, 3600),
    )
    cache_dir: str | None = _setting(
        "CACHE_DIR",
        "directory of the downloads of `dev` (default: execution-events in the user's cache)",
        None,
    )
