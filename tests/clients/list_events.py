"""The API by the client that openapi-generator writes in Python; prints what it read as JSON.

python list_events.py URL TOKEN EXECUTION_ID SINCE
"""

import json
import sys
from datetime import datetime
from typing import Any

import client  # type: ignore[import-not-found]


def main(url: str, token: str, execution_id: str, since: str) -> None:
    configuration = client.Configuration(host=url, api_key={"token": token})
    with client.ApiClient(configuration) as api:
        events = client.EventsApi(api)
        found: dict[str, Any] = {
            "list": _names(events.list_events(execution_id)),
            "pages": [],
            "since": _names(events.list_events(execution_id, since=datetime.fromisoformat(since))),
        }
        marker = None
        while True:
            page = events.list_events_with_http_info(execution_id, limit=2, marker=marker)
            found["pages"].append(_names(page.data))
            headers = {name.lower(): value for name, value in (page.headers or {}).items()}
            marker = headers.get("x-next-marker")
            if marker is None:
                break
        for key, configured in (("wrong", configuration), ("unauthorized", _without(url))):
            try:
                client.EventsApi(client.ApiClient(configured)).list_events(
                    execution_id, marker="wrong"
                )
            except client.ApiException as error:
                found[key] = [error.status, error.data.error_code]
    print(json.dumps(found))


def _without(url: str) -> "client.Configuration":
    return client.Configuration(host=url)


def _names(events: "list[client.Event]") -> list[str]:
    return [event.metadata.name for event in events]


main(*sys.argv[1:])
