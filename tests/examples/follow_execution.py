"""A client that follows an execution: the list first, then every change, over reconnects.

python follow_execution.py READER_URL EXECUTION_ID [CHANGES]

Stops after CHANGES printed lines, if given.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote


def follow(reader: str, execution_id: str) -> Iterator[dict[str, object]]:
    """Yield each new and each changed event."""
    url = f"{reader}/v1/executions/{quote(execution_id, safe='')}/events"
    headers = {"Accept": "text/event-stream"}
    while True:
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310
            # A comment comes at least every 15 seconds.
            with urllib.request.urlopen(request, timeout=30) as lines:  # noqa: S310
                kind = data = ""
                for line in lines:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "id":
                        headers["Last-Event-ID"] = value
                    elif field == "event":
                        kind = value
                    elif field == "data":
                        data = value
                    elif not field and data:
                        if kind == "":
                            yield json.loads(data)
                        # "reset": the whole list follows. "gone": pruned, or no longer selected.
                        kind = data = ""
        except (OSError, urllib.error.URLError) as error:
            print(f"reconnecting: {error}", file=sys.stderr)
        time.sleep(1)


def main(reader: str, execution_id: str, changes: str | None = None) -> None:
    """Print a line for each change."""
    limit = None if changes is None else int(changes)
    for event in islice(follow(reader, execution_id), limit):
        print(f"{event['lastTimestamp']}  {event['elemId']}  {event['reason']}  ×{event['count']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
