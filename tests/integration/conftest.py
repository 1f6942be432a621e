"""A broker that tests may stop and silence, shared by those that do."""

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from execution_events.embedded import DataDirectory, EmbeddedKafka, cache_directory


@pytest.fixture(scope="session")
async def own_kafka() -> AsyncIterator[EmbeddedKafka]:
    """Each test leaves it running."""
    with tempfile.TemporaryDirectory(prefix="execution-events-tests-") as parent:
        async with DataDirectory(Path(parent) / "data") as directory:
            kafka = EmbeddedKafka(directory, cache_directory(os.environ))
            async with kafka:
                yield kafka
