"""A worker with threads: one publisher for all of them.

python publish_threads.py EXECUTION_ID
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from execution_events.sync import Publisher


def run(publisher: Publisher, execution_id: str, elem_id: str) -> None:
    """Run one element."""
    element = publisher.element(
        execution_id=execution_id,
        namespace="my-tenant",
        object_name="my-dag",
        elem_type="KubeDAG.init",
        elem_id=elem_id,
    )
    with element.action("create"):
        element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")


with Publisher.from_settings() as publisher, ThreadPoolExecutor() as pool:
    runs = [pool.submit(run, publisher, sys.argv[1], f"job-{letter}") for letter in "abcd"]
    for each in runs:
        each.result()
