"""SIGTERM during an action with asyncio: its task is cancelled, and the process ends with 143.

python stop_asyncio.py EXECUTION_ID
"""

import asyncio
import signal
import sys

from execution_events import Publisher


async def work(execution_id: str) -> None:
    """Run one element."""
    async with Publisher.from_settings() as publisher:
        element = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-a",
        )
        async with element.action("create"):
            print("running", flush=True)
            await asyncio.sleep(60)


async def main(execution_id: str) -> int:
    """Cancel the work on SIGTERM, and wait until its end is published."""
    working = asyncio.create_task(work(execution_id))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    return 0


sys.exit(asyncio.run(main(sys.argv[1])))
