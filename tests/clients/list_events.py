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
        executions = client.ExecutionsApi(api)
        # One a page; created together, they are in the order of their ids.
        found["executions"], marker = [], None
        while True:
            page = executions.list_executions_with_http_info(
                limit=1, marker=marker, order="asc", lang="en"
            )
            found["executions"] += map(_execution, page.data)
            marker = _next_marker(page)
            if marker is None:
                break
        found["failed"] = [
            _execution(each)
            for each in executions.list_executions(state=["failed", "timed_out"], lang="en")
        ]
        marker = None
        while True:
            page = events.list_events_with_http_info(execution_id, limit=2, marker=marker)
            found["pages"].append(_names(page.data))
            marker = _next_marker(page)
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


def _next_marker(page: Any) -> Any:
    return {name.lower(): value for name, value in page.headers.items()}.get("x-next-marker")


def _execution(each: "client.Execution") -> list[Any]:
    failure = each.first_failure
    return [each.execution_id, each.state, each.events, failure and failure.reason]


def _names(events: "list[client.Event]") -> list[str]:
    return [event.metadata.name for event in events]


main(*sys.argv[1:])
