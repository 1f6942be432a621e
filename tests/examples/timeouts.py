"""Timeouts inside an action, which end it as timed out, and around it, which cancel it.

python timeouts.py EXECUTION_ID
"""

import asyncio
import sys
from contextlib import suppress

from execution_events import Element, Publisher


async def inside(element: Element) -> None:
    """End by ActionTimeout: the action has exceeded its own time."""
    async with element.action("create"), asyncio.timeout(0.1):
        await asyncio.sleep(60)


async def around(element: Element) -> None:
    """End by ActionCancelled: the caller has no more time for the action."""
    async with asyncio.timeout(0.5), element.action("delete"):
        await asyncio.sleep(60)


async def main(execution_id: str) -> None:
    """Run both."""
    async with Publisher.from_settings() as publisher:
        element = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-a",
        )
        for limited in (inside, around):
            with suppress(TimeoutError):
                await limited(element)


asyncio.run(main(sys.argv[1]))
