"""The child's end of a `client`: lines on standard input, each answered with a line of JSON."""

import asyncio
import json
import sys
from typing import Any

_LINE_LIMIT = 64 * 2**20
"""Bytes."""


async def lines() -> asyncio.StreamReader:
    """Return a reader of standard input."""
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def answer(**content: Any) -> None:
    """Print an answer."""
    print(json.dumps(content), flush=True)
