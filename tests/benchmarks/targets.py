"""Servers that answer reads, each with its requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from tests.benchmarks import consuming, recurring, servers
from tests.benchmarks import dataset as dataset_module
from tests.benchmarks.broker import broker
from tests.benchmarks.dataset import TABLE, Dataset
from tests.benchmarks.requests import RequestSets, request_sets
from tests.benchmarks.servers import Postgres, Serving
from tests.benchmarks.trees import THIS, Tree
from tests.support.configuration import configured
from tests.support.databases import Database

FEW, MANY = 8, 64
"""Connections."""


class Target(NamedTuple):
    """A server and the requests for it: tags and markers are its own."""

    serving: Serving
    requests: RequestSets
    database: Database
    tree: Tree = THIS


def reader(
    server: Postgres, database: Database, tree: Tree = THIS
) -> AbstractAsyncContextManager[Serving]:
    """Run a tree's reader with a limit that allows `MANY` connections of one caller."""
    return servers.reader(server, database, tree, reader_max_requests_per_token=2 * MANY)


@asynccontextmanager
async def filled(server: Postgres, dataset: Dataset, tree: Tree) -> AsyncIterator[Database]:
    """Create a database that a tree's consumer fills with a dataset from one partition.

    One partition keeps the order of the rows, as `dataset.store` writes them.
    """
    async with consuming.database(server, tree) as database:
        async with broker() as kafka:
            settings = await kafka.topic(partitions=1)
            await asyncio.to_thread(recurring.produce, settings, dataset.occurrences())
            settings = configured(settings, database_url=database.writer, management_port=0)
            await consuming.measure(server, settings, database, dataset.events, 1, tree)
        await dataset_module.settle(database)
        yield database


@asynccontextmanager
async def other_reader(server: Postgres, dataset: Dataset, tree: Tree) -> AsyncIterator[Target]:
    """Run another tree's reader on a database that its consumer filled."""
    async with filled(server, dataset, tree) as database, reader(server, database, tree) as other:
        yield Target(other, await request_sets(other.address, dataset), database, tree)


@asynccontextmanager
async def references(
    server: Postgres, database: Database, requests: RequestSets
) -> AsyncIterator[dict[str, Target]]:
    """Run the static and the naive server."""
    body = server.log("body")
    body.write_bytes(requests.seed)
    async with AsyncExitStack() as stack:
        yield {
            way: Target(
                await stack.enter_async_context(
                    servers.module(
                        *("reference", way, argument),
                        log=server.log(way),
                        database_url=database.owner,
                    )
                ),
                requests,
                database,
            )
            for way, argument in (("static", str(body)), ("naive", TABLE))
        }
