"""Kafka and PostgreSQL for one machine: the real servers, installed from Python packages.

    async with DataDirectory(path) as directory:
        kafka = EmbeddedKafka(directory, cache)
        postgres = EmbeddedPostgres(directory)
        async with running(kafka, postgres):
            ...  # kafka.bootstrap_servers, postgres.dsn()

Every server ends with the process that started it, keeps its data and ports in the directory, and
listens on 127.0.0.1 only.

- `directory`: the data directory of one instance, with its lock and ports.
- `kafka`: Apache Kafka, one node or several.
- `postgres`: PostgreSQL.
- `server`: the base of both; several servers started together.
- `process`: a child process that cannot outlive its parent.
- `environment`: the environment of child processes.
- `guard`: the script that runs between the two and enforces this.
- `jars`: the jars of Kafka, downloaded and verified by a committed list.
- `jarlist`: prints the list for a new version.
- `errors`: the errors of this package.
"""

from execution_events.embedded.directory import HOST, DataDirectory, is_free
from execution_events.embedded.environment import own_environment
from execution_events.embedded.errors import EmbeddedError, MissingExtraError
from execution_events.embedded.jars import (
    JarList,
    JarsUnavailableError,
    ProgressLine,
    cache_directory,
)
from execution_events.embedded.kafka import EmbeddedKafka, KafkaNode
from execution_events.embedded.postgres import EmbeddedPostgres, psql
from execution_events.embedded.process import ChildProcess
from execution_events.embedded.server import Server, running

__all__ = [
    "HOST",
    "ChildProcess",
    "DataDirectory",
    "EmbeddedError",
    "EmbeddedKafka",
    "EmbeddedPostgres",
    "JarList",
    "JarsUnavailableError",
    "KafkaNode",
    "MissingExtraError",
    "ProgressLine",
    "Server",
    "cache_directory",
    "is_free",
    "own_environment",
    "psql",
    "running",
]
