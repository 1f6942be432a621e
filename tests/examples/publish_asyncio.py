"""A worker with asyncio: an action that succeeds, and one that is retried and fails.

python publish_asyncio.py EXECUTION_ID
"""

import asyncio
import sys

from execution_events import Publisher


async def main(execution_id: str) -> None:
    """Run two elements."""
    async with Publisher.from_settings() as publisher:
        first = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-a",
        )
        async with first.action("create"):
            await first.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")

        second = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-b",
        )
        try:
            async with second.action("create") as action:
                # Three retries with the same text are one event with count 3.
                for _ in range(3):
                    await action.retry(TimeoutError("no node in time"))
                raise RuntimeError("exit code 137")
        except RuntimeError as error:
            print(f"job-b failed: {error}")


asyncio.run(main(sys.argv[1]))
