"""Kafka and PostgreSQL for one machine: the real servers, with nothing to install beside Python.

    async with DataDirectory(path) as directory:
        kafka = EmbeddedKafka(directory, cache)
        postgres = EmbeddedPostgres(directory)
        async with running(kafka, postgres):
            ...  # kafka.bootstrap_servers, postgres.dsn()

Every server dies with the process that started it, keeps its data and its ports in the directory,
and listens on 127.0.0.1 alone.

- directory   the data directory of one instance: its lock, its ports
- kafka       Apache Kafka, one node
- postgres    PostgreSQL
- server      what both have in common; running several at once
- process     a child process that cannot outlive its parent
- guard       the script between the two, which sees to that
- jars        the jars of Kafka: a committed list, downloaded and verified
- jarlist     prints such a list for a new version
- errors      what goes wrong
"""

from execution_events.embedded.directory import DataDirectory
from execution_events.embedded.errors import EmbeddedError, MissingExtraError
from execution_events.embedded.jars import (
    JarList,
    JarsUnavailableError,
    ProgressLine,
    cache_directory,
)
from execution_events.embedded.kafka import EmbeddedKafka
from execution_events.embedded.postgres import EmbeddedPostgres
from execution_events.embedded.process import ChildProcess
from execution_events.embedded.server import Server, running

__all__ = [
    "ChildProcess",
    "DataDirectory",
    "EmbeddedError",
    "EmbeddedKafka",
    "EmbeddedPostgres",
    "JarList",
    "JarsUnavailableError",
    "MissingExtraError",
    "ProgressLine",
    "Server",
    "cache_directory",
    "running",
]
