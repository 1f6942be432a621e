"""A pre-fork server: each process opens its publisher after the fork, and closes it at its end.

python publish_prefork.py EXECUTION_ID
"""

import os
import sys
from contextlib import ExitStack

from execution_events.sync import Publisher


class Worker:
    """One process of the server."""

    def start(self) -> None:
        """Open the publisher: gunicorn's `post_fork`, Celery's `worker_process_init`."""
        self._resources = ExitStack()
        self._publisher = self._resources.enter_context(Publisher.from_settings())

    def stop(self) -> None:
        """Close the publisher: gunicorn's `worker_exit`, Celery's `worker_process_shutdown`."""
        self._resources.close()

    def handle(self, execution_id: str, elem_id: str) -> None:
        """Run one element."""
        element = self._publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id=elem_id,
        )
        with element.action("create"):
            element.event("镜像拉取##PullImage", "拉取镜像. ## Pulling image.")


def main(execution_id: str) -> None:
    """Fork two processes, and wait for them."""
    worker = Worker()
    processes = []
    for elem_id in ("job-a", "job-b"):
        process = os.fork()
        if process == 0:
            worker.start()
            worker.handle(execution_id, elem_id)
            worker.stop()
            sys.exit()
        processes.append(process)
    for process in processes:
        os.waitpid(process, 0)


main(sys.argv[1])
