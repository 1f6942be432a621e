"""An action with retries: each failed attempt is reported, and the last one ends the action.

python retries.py EXECUTION_ID
"""

import sys
import time
from collections.abc import Callable

from execution_events.sync import Element, Publisher


def with_retries(element: Element, action: str, attempt: Callable[[], None], limit: int) -> None:
    """Run `attempt` until it succeeds, at most `limit` times; raise its last error."""
    with element.action(action) as scope:
        for number in range(1, limit + 1):
            try:
                attempt()
                return
            except ConnectionError as error:
                if number == limit:
                    raise
                # Equal errors are one event with a count; a number in the text would prevent that.
                scope.retry(error)
                time.sleep(0.01 * 2**number)


def main(execution_id: str) -> None:
    """Run an element that succeeds in its third attempt, and one that never does."""
    failures = [ConnectionError("no node in time")] * 2

    def sometimes() -> None:
        if failures:
            raise failures.pop()

    def never() -> None:
        raise ConnectionError("no node in time")

    with Publisher.from_settings() as publisher:
        for elem_id, attempt in (("job-a", sometimes), ("job-b", never)):
            element = publisher.element(
                execution_id=execution_id,
                namespace="my-tenant",
                object_name="my-dag",
                elem_type="KubeDAG.init",
                elem_id=elem_id,
            )
            try:
                with_retries(element, "create", attempt, limit=4)
            except ConnectionError as error:
                print(f"{elem_id} failed: {error}")


main(sys.argv[1])
