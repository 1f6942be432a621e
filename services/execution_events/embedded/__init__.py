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

from .directory import DataDirectory
from .errors import EmbeddedError, MissingExtraError
from .jars import JarList, JarsUnavailableError, ProgressLine, cache_directory
from .kafka import EmbeddedKafka
from .postgres import EmbeddedPostgres
from .process import ChildProcess
from .server import Server, running

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
