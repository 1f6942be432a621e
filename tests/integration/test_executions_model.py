"""The list of executions against a model: random histories, filters, orders, pages and writes."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from execution_events.events import Occurrence
from tests.support import histories, states
from tests.support.readers import EXECUTIONS, Reader, named
from tests.support.records import Log

HISTORIES = 8
QUERIES = 25
"""After each history."""
MICROSECOND = timedelta(microseconds=1)

Key = tuple[str, str]
Listed = dict[str, Any]


# The model: all occurrences in log order, folded anew for each list, without the product's code.


def events_of(occurrences: Iterable[Occurrence]) -> dict[Key, list[states.Event]]:
    """Return the folded events by execution and namespace."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    latest: dict[tuple[str, str, str], Occurrence] = {}
    for each in occurrences:
        identity = (each.execution_id, each.namespace, each.name)
        counts[identity] += each.count
        if identity not in latest or each.last_timestamp >= latest[identity].last_timestamp:
            latest[identity] = each
    found = defaultdict(list)
    for identity, each in latest.items():
        found[identity[:2]].append(
            states.Event(
                *identity,
                *(each.object_name, each.elem_type, each.elem_id, each.action_name),
                *(each.reason, each.message, each.type),
                each.last_timestamp,
                counts[identity],
            )
        )
    return found


def model(occurrences: Sequence[Occurrence], created: dict[Key, datetime]) -> list[Listed]:
    """Return all executions, with `_created`, in ascending order."""
    listed = []
    for key, events in events_of(occurrences).items():
        own = [each for each in occurrences if (each.execution_id, each.namespace) == key]
        of_actions = states.actions(events)
        counters = states.executions(events, of_actions)[key]
        elements = {
            "total": counters["elements"],
            **{state: counters[state] for state in ("running", "succeeded", "failed")},
            "timedOut": counters["timed_out"],
            "cancelled": counters["cancelled"],
        }
        listed.append(
            {
                "executionId": key[0],
                "namespace": key[1],
                "objectName": own[0].object_name,
                "state": counters["state"],
                "elements": elements,
                "warnings": counters["warnings"],
                "events": len(events),
                "occurrences": sum(each.count for each in own),
                "firstTimestamp": shown(min(each.first_timestamp for each in own)),
                "lastTimestamp": shown(max(each.last_timestamp for each in own)),
                "createdAt": shown(created[key]),
                "firstFailure": first_failure(counters["state"], events, of_actions),
            }
        )
    return sorted(
        listed,
        key=lambda each: (
            created[each["executionId"], each["namespace"]],
            each["executionId"].encode(),
            each["namespace"].encode(),
        ),
    )


def first_failure(
    state: str, events: Iterable[states.Event], of_actions: states.Rows
) -> dict[str, str] | None:
    if state not in ("failed", "timed_out"):
        return None
    failed = [
        (action["finished"], *(text.encode() for text in key[2:]), action["decided_by"])
        for key, action in of_actions.items()
        if action["state"] in ("failed", "timed_out")
    ]
    deciding = min(failed)[-1]
    [event] = [each for each in events if each.name == deciding]
    return {
        "elemId": event.elem_id,
        "actionName": event.action_name,
        "reason": event.reason,
        "message": event.message,
    }


def shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def selected(listed: Iterable[Listed], params: dict[str, Any]) -> list[Listed]:
    """Return the whole list that a query selects."""
    found = [
        each
        for each in listed
        if all(
            each[member] in params[member]
            for member in ("executionId", "namespace", "objectName", "state")
            if member in params
        )
        and each["createdAt"] >= params.get("since", "")
        and each["createdAt"] < params.get("until", "a")
    ]
    return found if params.get("order") == "asc" else found[::-1]


def random_query(rng: Random, moments: Sequence[datetime]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, values in (
        ("executionId", ["e-1", "e-2", "e-11", "e-21", "e-12", "absent"]),
        ("namespace", ["m", "n", "absent"]),
        ("objectName", ["o", "p", "absent"]),
        ("state", list(states.STATES)),
    ):
        if rng.random() < 0.4:
            params[name] = rng.sample(values, rng.randint(1, 3))
    for name in ("since", "until"):
        if rng.random() < 0.3:
            params[name] = shown(rng.choice(moments) + rng.choice((-1, 0, 1)) * MICROSECOND)
    if rng.random() < 0.7:
        params["order"] = rng.choice(("asc", "desc"))
    return params


async def pages(reader: Reader, params: dict[str, Any], limit: int) -> list[Listed]:
    """Walk the pages of a list; all but the last are full, and none but an only one is empty."""
    url = str(httpx.URL(EXECUTIONS, params={**params, "limit": limit, "times": "micro"}))
    found: list[Listed] = []
    while True:
        response = await reader.get(url)
        assert response.status_code == 200, response.text
        page = response.json()
        link = response.links.get("next")
        assert len(page) == limit if link else bool(page) or not found
        found += page
        if link is None:
            return found
        url = str(response.request.url.join(link["url"]))


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_every_list_equals_the_model(
    reader: Reader, written: Log, owner: asyncpg.Connection, seed: int
) -> None:
    rng = Random(seed)
    occurrences: list[Occurrence] = []
    for number in range(3):
        for batch in histories.batches(rng):
            stored = [
                msgspec.structs.replace(each, execution_id=f"{each.execution_id}{number or ''}")
                for each in batch
            ]
            await written.add(*stored)
            occurrences += stored
        # Ties, and neighbours at the distance of a microsecond.
        await owner.execute(
            "UPDATE execution SET created_at = timestamptz '2026-01-01Z'"
            " + interval '1 microsecond' * (abs(hashtext(execution_id || namespace || $1)) % 3)",
            str(seed),
        )
        rows = await owner.fetch("SELECT execution_id, namespace, created_at FROM execution")
        created = {(row[0], row[1]): row[2] for row in rows}
        listed = model(occurrences, created)
        assert await pages(reader, {"order": "asc"}, 1000) == listed
        for _ in range(QUERIES):
            params = random_query(rng, sorted(set(created.values())))
            expected = selected(listed, params)
            assert await pages(reader, params, rng.randint(1, 4)) == expected, json.dumps(params)


class _Examples:
    """State shared by the examples, which share a database."""

    number = 0


@given(
    before=st.sets(st.integers(0, 9), min_size=1),
    between=st.lists(
        st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=4), max_size=6
    ),
    limit=st.integers(1, 4),
    order=st.sampled_from(["asc", "desc"]),
    of_tenants=st.booleans(),
)
@hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_pages_stay_exact_while_executions_arrive_and_change(
    reader: Reader,
    written: Log,
    before: set[int],
    between: list[list[tuple[int, bool]]],
    limit: int,
    order: str,
    of_tenants: bool,
) -> None:
    """Executions from before the first page are on exactly one page; none is on two."""
    _Examples.number += 1
    tenant = f"tenant-{_Examples.number}"

    async def arrive(numbers: Iterable[int], *, failed: bool = False) -> None:
        reason = "ActionFailed" if failed else "ActionStart"
        events = [
            named(reason, execution_id=f"e-{number}", namespace=tenant, reason=reason)
            for number in numbers
        ]
        if events:
            await written.add(*events)

    await arrive(sorted(before))
    params: dict[str, Any] = {"namespace": tenant, "limit": limit, "order": order}
    if of_tenants:
        params["state"] = list(states.STATES)
    url: str | None = str(httpx.URL(EXECUTIONS, params=params))
    walked: list[str] = []
    steps = iter(between)
    while url is not None:
        response = await reader.get(url)
        walked += [each["executionId"] for each in response.json()]
        assert len(walked) == len(set(walked))
        for number, failed in next(steps, []):
            await arrive([number], failed=failed)
        link = response.links.get("next")
        url = None if link is None else str(response.request.url.join(link["url"]))
    assert {f"e-{number}" for number in before} <= set(walked)
