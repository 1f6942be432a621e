"""SIGTERM during an action: the action is cancelled, and the process ends with 143.

python stop_threads.py EXECUTION_ID
"""

import signal
import sys
import time
from types import FrameType

from execution_events.sync import Publisher


def stop(number: int, frame: FrameType | None) -> None:
    """Leave the running action by an exception: by default SIGTERM ends a process at once."""
    sys.exit(128 + number)


def main(execution_id: str) -> None:
    """Run one element until a signal comes."""
    signal.signal(signal.SIGTERM, stop)
    with Publisher.from_settings() as publisher:
        element = publisher.element(
            execution_id=execution_id,
            namespace="my-tenant",
            object_name="my-dag",
            elem_type="KubeDAG.init",
            elem_id="job-a",
        )
        with element.action("create"):
            print("running", flush=True)
            time.sleep(60)


main(sys.argv[1])
