"""States of actions, elements and executions in the views: one row of a table for each case."""

from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any, NamedTuple

import asyncpg
import msgspec
import pytest

from execution_events.events import COUNT_MAX, Occurrence
from execution_events.projection.states import STATE_OF_REASON
from execution_events.store.connection import fetch_one
from execution_events.store.write.batches import BatchWriter
from tests.support.databases import Database, administrator
from tests.support.records import EPOCH, Log, batch, log, occurrence

Row = dict[str, Any]


class Case(NamedTuple):
    """Events in their order of arrival, and some columns of the rows that a view then has."""

    claim: str
    steps: list[Occurrence]
    rows: list[Row]


@pytest.fixture
async def ops(database: Database) -> AsyncIterator[asyncpg.Connection]:
    async with administrator(database.ops) as connection:
        yield connection


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def step(
    code: str, seconds: float = 0, action: str = "create", elem: str = "job", **fields: Any
) -> Occurrence:
    """Return an event of one action, named by its element, action, reason and time."""
    defaults = {
        "name": f"object.{elem}.{action}.{code}.{seconds:g}",
        "reason": f"原因##{code}",
        "message": f"消息 ## {code} at {seconds:g}",
        "first_timestamp": at(seconds),
        "last_timestamp": at(seconds),
        "elem_id": elem,
        "action_name": action,
    }
    return occurrence(**(defaults | fields))


def changed(event: Occurrence, **fields: Any) -> Occurrence:
    return msgspec.structs.replace(event, **fields)


def parametrize(cases: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.claim) for case in cases])


async def check(
    writer: BatchWriter, ops: asyncpg.Connection, case: Case, view: str, order: str
) -> None:
    """Store the steps at once and one by one; compare the rows of both."""
    await writer.store(batch(log([changed(each, execution_id="at-once") for each in case.steps])))
    single = Log(writer, 1)
    for each in case.steps:
        await single.add(changed(each, execution_id="one-by-one"))
    for execution_id in ("at-once", "one-by-one"):
        rows = await ops.fetch(
            f"SELECT * FROM ops.{view} WHERE execution_id = $1 ORDER BY {order}", execution_id
        )
        found = [
            {column: row[column] for column in expected}
            for row, expected in zip(rows, case.rows, strict=True)
        ]
        assert found == case.rows, execution_id


ENDS = {
    "SuccessfulFinish": "succeeded",
    "ActionFailed": "failed",
    "ActionTimeout": "timed_out",
    "ActionCancelled": "cancelled",
}
FAILURES = ("failed", "timed_out")
CODES = {state: code for code, state in ENDS.items()} | {
    "running": "ActionStart",
    "unknown": "PullImage",
}
OF_ELEMENT = ("running", "failed", "timed_out", "cancelled", "succeeded", "unknown")
OF_EXECUTION = ("failed", "timed_out", "running", "cancelled", "succeeded", "unknown")
NONE_YET = {"finished": None, "duration": None, "duration_seconds": None}

ACTIONS = [
    Case(
        "a started action runs",
        [step("ActionStart")],
        [
            {
                "namespace": "tenant",
                "object_name": "object",
                "elem_type": "KubeDAG.init",
                "elem_id": "job",
                "action_name": "create",
                "state": "running",
                "started": at(0),
                **NONE_YET,
                "attempts": 1,
                "retries": 0,
                "warnings": 0,
                "last_seen": at(0),
                "last_reason_code": "ActionStart",
                "last_message_en": "ActionStart at 0",
                "failure": None,
                "fingerprint": None,
                "retried": False,
            }
        ],
    ),
    *(
        Case(
            f"{code} ends it as {state}",
            [step("ActionStart"), step(code, 1.5)],
            [
                {
                    "state": state,
                    "started": at(0),
                    "finished": at(1.5),
                    "duration": timedelta(seconds=1.5),
                    "duration_seconds": 1.5,
                    "last_reason_code": code,
                    "failure": f"{code} at 1.5" if state in FAILURES else None,
                }
            ],
        )
        for code, state in ENDS.items()
    ),
    Case(
        "a retry runs, and is counted",
        [step("ActionStart"), step("ActionRetry", 2, count=3, type="Warning")],
        [{"state": "running", "retries": 3, "retried": True, "warnings": 3, "attempts": 1}],
    ),
    Case(
        "an end without a start has no duration",
        [step("ActionTimeout", 7)],
        [{"state": "timed_out", "started": None, "finished": at(7), "duration_seconds": None}],
    ),
    Case(
        "an action without a life-cycle event is unknown",
        [step("PullImage", 4, type="Warning")],
        [{"state": "unknown", "started": None, **NONE_YET, "warnings": 1, "last_seen": at(4)}],
    ),
    Case(
        "other events are heard and do not decide",
        [step("ActionFailed", 1), step("PullImage", 2)],
        [
            {
                "state": "failed",
                "finished": at(1),
                "last_seen": at(2),
                "last_reason_code": "PullImage",
                "last_message_en": "PullImage at 2",
                "failure": "ActionFailed at 1",
            }
        ],
    ),
    Case(
        "the latest event decides in any order of arrival",
        [step("SuccessfulFinish", 2), step("ActionFailed", 1), step("ActionStart")],
        [{"state": "succeeded", "started": at(0), "finished": at(2), "failure": None}],
    ),
    Case(
        "started is the latest attempt",
        [
            step("ActionStart"),
            step("ActionFailed", 1),
            step("ActionStart", 5),
            step("SuccessfulFinish", 8),
        ],
        [{"attempts": 2, "started": at(5), "finished": at(8), "duration_seconds": 3.0}],
    ),
    Case(
        "a start after an end by the producers' clocks runs",
        [step("ActionFailed", 1), step("ActionStart", 1.000001)],
        [{"state": "running", **NONE_YET, "failure": None, "fingerprint": None}],
    ),
    Case(
        "on a tie the failure decides, before any other end and the start",
        [step(code, 3) for code in ("ActionStart", *ENDS)],
        [{"state": "failed", "last_reason_code": "ActionFailed", "failure": "ActionFailed at 3"}],
    ),
    Case(
        "on a tie within a state the greatest name decides",
        [
            step("ActionFailed", 3, name="object.b", message="b"),
            step("ActionFailed", 3, name="object.a", message="a"),
        ],
        [{"state": "failed", "failure": "b", "last_message_en": "b"}],
    ),
    Case(
        "on a tie the deciding event was seen last",
        [step("ActionFailed", 3, name="object.a"), step("PullImage", 3, name="object.b")],
        [{"state": "failed", "last_reason_code": "ActionFailed"}],
    ),
    Case(
        "on a tie of others the greatest name was seen last",
        [
            step("ActionStart", 1),
            step("Second", 3, name="object.b"),
            step("First", 3, name="object.a"),
        ],
        [{"state": "running", "last_reason_code": "Second"}],
    ),
    Case(
        "an event whose texts change moves to another action",
        [
            step("ActionStart", 0, name="object.1"),
            step("PullImage", 1),
            step("ActionFailed", 2, name="object.1", action="delete", count=2),
        ],
        [
            {"action_name": "create", "state": "unknown", "attempts": 0, "last_seen": at(1)},
            {"action_name": "delete", "state": "failed", "attempts": 0, "finished": at(2)},
        ],
    ),
    Case(
        "actions of one element are apart",
        [step("ActionStart", 0), step("SuccessfulFinish", 5), step("ActionStart", 9, "delete")],
        [
            {"action_name": "create", "state": "succeeded", "duration_seconds": 5.0},
            {"action_name": "delete", "state": "running", "started": at(9)},
        ],
    ),
]


@parametrize(ACTIONS)
async def test_an_action(writer: BatchWriter, ops: asyncpg.Connection, case: Case) -> None:
    await check(writer, ops, case, "actions_v1", "action_name")


@pytest.mark.parametrize("reason", ["{}", "原因##{}", " 原因 ## {} ", "##{}"])
async def test_the_code_of_a_reason_decides_the_state(
    writer: BatchWriter, ops: asyncpg.Connection, reason: str
) -> None:
    steps = [step(code, reason=reason.format(code), elem=code) for code in STATE_OF_REASON]
    await writer.store(batch(log(steps)))
    rows = await ops.fetch("SELECT elem_id, state FROM ops.actions_v1")
    assert {row["elem_id"]: row["state"] for row in rows} == STATE_OF_REASON
    rows = await ops.fetch("SELECT elem_id, reason_code FROM ops.failures_v1")
    assert {tuple(row) for row in rows} == {
        (code, code) for code, state in STATE_OF_REASON.items() if state in FAILURES
    }


@pytest.mark.parametrize("reason", ["启动##actionstart", "ActionStart##启动", "a##ActionFailed##b"])
async def test_other_reasons_decide_nothing(
    writer: BatchWriter, ops: asyncpg.Connection, reason: str
) -> None:
    await writer.store(batch(log([step("x", reason=reason)])))
    assert await ops.fetchval("SELECT state FROM ops.actions_v1") == "unknown"


ELEMENTS = [
    Case(
        "one that runs, with a nested action that has ended",
        [
            step("ActionStart", 0, "create", count=2),
            step("ActionStart", 1, "prepare"),
            step("ActionRetry", 2, "prepare", type="Warning"),
            step("ActionFailed", 3, "prepare", type="Warning", count=4),
        ],
        [
            {
                "namespace": "tenant",
                "object_name": "object",
                "elem_type": "KubeDAG.init",
                "elem_id": "job",
                "state": "running",
                "action_name": "create",
                "started": at(0),
                **NONE_YET,
                "actions": 2,
                "attempts": 3,
                "retries": 1,
                "warnings": 5,
                "last_seen": at(3),
            }
        ],
    ),
    Case(
        "its span is from the first start to the last end",
        [
            step("ActionStart", 0, "create"),
            step("SuccessfulFinish", 2, "create"),
            step("ActionStart", 7, "delete"),
            step("SuccessfulFinish", 9.5, "delete"),
        ],
        [
            {
                "state": "succeeded",
                "action_name": "delete",
                "started": at(0),
                "finished": at(9.5),
                "duration": timedelta(seconds=9.5),
                "duration_seconds": 9.5,
            }
        ],
    ),
    *(
        Case(
            f"{first} comes before {second}",
            [step(CODES[first], 5, "a"), step(CODES[second], 9, "b")],
            [{"state": first, "action_name": "a", "last_seen": at(9)}],
        )
        for first, second in combinations(OF_ELEMENT, 2)
    ),
    Case(
        "of two actions in its state, the one seen last",
        [step("ActionFailed", 1, "a"), step("ActionFailed", 2, "b"), step("Log", 3, "a")],
        [{"state": "failed", "action_name": "a", "finished": at(2)}],
    ),
    Case(
        "of two seen at once, the one with the greatest name",
        [step("ActionFailed", 1, "a"), step("ActionFailed", 1, "b"), step("ActionFailed", 0, "c")],
        [{"state": "failed", "action_name": "b"}],
    ),
    Case(
        "without a start there is no duration",
        [step("ActionFailed", 1)],
        [{"started": None, "finished": at(1), "duration": None, "duration_seconds": None}],
    ),
    Case(
        "an element of another object is another",
        [step("ActionFailed", 1), step("ActionStart", 2, object_name="other")],
        [
            {"object_name": "object", "state": "failed"},
            {"object_name": "other", "state": "running"},
        ],
    ),
]


@parametrize(ELEMENTS)
async def test_an_element(writer: BatchWriter, ops: asyncpg.Connection, case: Case) -> None:
    await check(writer, ops, case, "elements_v1", "object_name")


@pytest.mark.tampers
async def test_sums_stop_at_their_maximum(
    database: Database, writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    await writer.store(batch(log([step("ActionStart", 0), step("ActionStart", 1, "delete")])))
    async with administrator(database.owner) as owner:
        await owner.execute(
            "UPDATE execution_events.action SET attempts = $1, retries = $1, warnings = $1",
            COUNT_MAX,
        )
    row = await fetch_one(ops, "SELECT attempts, retries, warnings FROM ops.elements_v1")
    assert tuple(row) == (COUNT_MAX,) * 3


COUNTS = dict.fromkeys(("running", "succeeded", "failed", "timed_out", "cancelled"), 0)
NO_FAILURE = {
    "first_failure_elem_id": None,
    "first_failure_action_name": None,
    "first_failure_reason_code": None,
    "first_failure_message_en": None,
}

EXECUTIONS = [
    Case(
        "it counts its elements by state, and fails if one does",
        [
            step("ActionStart", 0, elem="a"),
            step("SuccessfulFinish", 1, elem="b"),
            step("ActionTimeout", 3, elem="c"),
            step("ActionFailed", 4.5, elem="d", type="Warning", count=2),
            step("ActionCancelled", 5, elem="e"),
            step("PullImage", 6, elem="f"),
        ],
        [
            {
                "namespace": "tenant",
                "object_name": "object",
                "state": "failed",
                "elements": 6,
                **dict.fromkeys(COUNTS, 1),
                "warnings": 2,
                "events": 6,
                "occurrences": 7,
                "first_timestamp": at(0),
                "last_timestamp": at(6),
                "duration_seconds": 6.0,
                "first_failure_elem_id": "c",
                "first_failure_action_name": "create",
                "first_failure_reason_code": "ActionTimeout",
                "first_failure_message_en": "ActionTimeout at 3",
            }
        ],
    ),
    *(
        Case(
            f"{first} comes before {second}",
            [step(CODES[first], 5, elem="a"), step(CODES[second], 9, elem="b")],
            [{"state": first}],
        )
        for first, second in combinations(OF_EXECUTION, 2)
    ),
    Case(
        "it runs while an element with a failed action runs, and has no failure yet",
        [step("ActionFailed", 1, "prepare"), step("ActionStart", 0)],
        [{"state": "running", **COUNTS, "running": 1, **NO_FAILURE}],
    ),
    Case(
        "its first failure may be of an element that still runs",
        [
            step("ActionFailed", 1, "prepare", elem="a"),
            step("ActionStart", 0, elem="a"),
            step("ActionFailed", 2, elem="b"),
        ],
        [{"state": "failed", "running": 1, "failed": 1, "first_failure_elem_id": "a"}],
    ),
    Case(
        "of failures at one time, the first is the least element and action",
        [
            step("ActionFailed", 1, elem="b"),
            step("ActionFailed", 1, "delete", elem="a"),
            step("ActionFailed", 1, elem="a", elem_type="U"),
            step("ActionFailed", 1, elem="a", message="m"),
            step("ActionFailed", 1, elem="0", object_name="p"),
        ],
        [{"first_failure_elem_id": "a", "first_failure_message_en": "m"}],
    ),
    Case(
        "the object is that of the first record",
        [
            step("ActionStart", 5, object_name="b"),
            step("ActionStart", 0, object_name="a", elem="x"),
        ],
        [{"object_name": "b", "elements": 2}],
    ),
    Case(
        "namespaces of one execution are apart",
        [step("ActionFailed", 1), step("SuccessfulFinish", 1, namespace="zone")],
        [
            {"namespace": "tenant", "state": "failed", "first_failure_elem_id": "job"},
            {"namespace": "zone", "state": "succeeded", **NO_FAILURE},
        ],
    ),
]


@parametrize(EXECUTIONS)
async def test_an_execution(writer: BatchWriter, ops: asyncpg.Connection, case: Case) -> None:
    await check(writer, ops, case, "executions_v1", "namespace")


FAILED = [
    Case(
        "failed and timed out actions, also of an element that runs",
        [
            step("ActionStart", 0),
            step("ActionFailed", 2, "prepare"),
            step("ActionTimeout", 3, "wait"),
            step("ActionCancelled", 4, "delete"),
            step("SuccessfulFinish", 5, "start"),
            step("ActionStart", 1, "prepare", count=3),
        ],
        [
            {
                "namespace": "tenant",
                "object_name": "object",
                "elem_type": "KubeDAG.init",
                "elem_id": "job",
                "action_name": "prepare",
                "state": "failed",
                "finished": at(2),
                "attempts": 3,
                "reason_code": "ActionFailed",
                "failure": "ActionFailed at 2",
            },
            {"action_name": "wait", "state": "timed_out", "reason_code": "ActionTimeout"},
        ],
    ),
    Case(
        "one that runs again does not stand failed",
        [step("ActionFailed"), step("ActionStart", 1)],
        [],
    ),
]


@parametrize(FAILED)
async def test_failures(writer: BatchWriter, ops: asyncpg.Connection, case: Case) -> None:
    await check(writer, ops, case, "failures_v1", "action_name")


async def test_a_failure_has_the_fingerprint_of_its_action(
    writer: BatchWriter, ops: asyncpg.Connection
) -> None:
    failed = [step("ActionFailed", elem=elem, message=f"坏 ## {elem} is bad") for elem in "abc"]
    await writer.store(batch(log([*failed, step("ActionFailed", elem="d", message="another")])))
    groups = await ops.fetch("SELECT count(*) FROM ops.failures_v1 GROUP BY fingerprint ORDER BY 1")
    assert [row[0] for row in groups] == [1, 3]
    different = (
        "SELECT count(*) FROM ops.failures_v1 JOIN ops.actions_v1"
        " USING (execution_id, namespace, object_name, elem_type, elem_id, action_name)"
        " WHERE failures_v1.fingerprint IS DISTINCT FROM actions_v1.fingerprint"
    )
    assert await ops.fetchval(different) == 0


def moment(code: str, when: datetime, **fields: Any) -> Occurrence:
    """Return an event at `when`."""
    return step(code, first_timestamp=when, last_timestamp=when, **fields)


def ended(
    elem: str, now: datetime, seconds: float, code: str = "SuccessfulFinish", **fields: Any
) -> list[Occurrence]:
    """Return the start and the end, at `now`, of an action that took `seconds`."""
    begun = now - timedelta(seconds=seconds)
    return [
        moment("ActionStart", begun, elem=elem, **fields),
        moment(code, now, elem=elem, **fields),
    ]


async def test_quiet_actions_are_those_that_run(written: Log, ops: asyncpg.Connection) -> None:
    now = await ops.fetchval("SELECT now()")
    hour, ahead = now - timedelta(hours=1), now + timedelta(hours=1)
    await written.add(
        moment("ActionStart", hour, elem="a"),
        moment("PullImage", hour, elem="b"),
        moment("ActionStart", ahead, elem="c"),
        moment("ActionFailed", hour, elem="d"),
        moment("ActionStart", hour - timedelta(hours=1), elem="e"),
        moment("PullImage", hour, elem="e"),
    )
    rows = await ops.fetch("SELECT * FROM ops.quiet_v1 ORDER BY elem_id")
    assert [row["elem_id"] for row in rows] == ["a", "c", "e"]
    first, early, heard = rows
    assert tuple(first)[:8] == (
        "execution-1", "tenant", "object", "KubeDAG.init", "a", "create", hour, hour,
    )  # fmt: skip
    assert 3600 <= first["silence_seconds"] < 3700
    assert (first["usual_seconds"], first["last_reason_code"]) == (None, "ActionStart")
    assert early["silence_seconds"] == 0
    assert (heard["started"], heard["last_seen"], heard["last_reason_code"]) == (
        hour - timedelta(hours=1), hour, "PullImage",
    )  # fmt: skip


async def test_the_usual_duration_is_of_at_least_five_of_the_same_kind(
    written: Log, ops: asyncpg.Connection
) -> None:
    now = await ops.fetchval("SELECT now()")
    query = "SELECT usual_seconds FROM ops.quiet_v1"
    await written.add(
        moment("ActionStart", now),
        *(each for number in range(4) for each in ended(f"a{number}", now, 10)),
        *(each for number in range(5) for each in ended(f"b{number}", now, 9, elem_type="other")),
        *(each for number in range(5) for each in ended(f"c{number}", now, 9, action="other")),
        *(each for number in range(5) for each in ended(f"d{number}", now, 9, namespace="other")),
    )
    assert await ops.fetchval(query) is None

    await written.add(*ended("a4", now, 20))
    # Four fifths of the way from the fourth to the fifth of five: 0.95 * 4 = 3.8.
    assert await ops.fetchval(query) == pytest.approx(18)


async def test_durations_are_of_the_last_thousand_that_ended_within_seven_days(
    written: Log, ops: asyncpg.Connection
) -> None:
    query = "SELECT * FROM ops.durations_v1"
    assert await ops.fetch(query) == []
    now = await ops.fetchval("SELECT now()")
    week = timedelta(days=7)
    await written.add(
        *ended("outdated", now - week - timedelta(minutes=1), 9999),
        moment("SuccessfulFinish", now, elem="without a start"),
        moment("ActionStart", now, elem="runs"),
    )
    assert await ops.fetch(query) == []

    inside = now - week + timedelta(minutes=1)
    await written.add(
        *ended("a", inside, 4),
        *ended("b", inside, 8, "ActionFailed"),
        *ended("c", inside, 2, "ActionTimeout"),
        *ended("d", inside, 6, "ActionCancelled"),
    )
    [row] = await ops.fetch(query)
    kind = ("tenant", "KubeDAG.init", "create")
    assert tuple(row) == (*kind, 4, 2, pytest.approx(5), pytest.approx(7.7), 8)
    usual = "SELECT usual_seconds FROM ops.quiet_v1"
    assert await ops.fetchval(usual) is None

    # With a thousand later ones, nothing else counts.
    hour = now - timedelta(hours=1)
    await written.add(
        *(
            each
            for number in range(1000)
            for each in ended(f"{number}", hour - timedelta(seconds=number), 1 + number % 2)
        )
    )
    [row] = await ops.fetch(query)
    assert tuple(row) == (*kind, 1000, 0, 1.5, 2, 2)
    assert await ops.fetchval(usual) == 2


async def test_durations_are_apart_by_namespace_type_and_action(
    written: Log, ops: asyncpg.Connection
) -> None:
    now = await ops.fetchval("SELECT now()")
    kinds = [
        (n, t, a) for n in ("tenant", "zone") for t in ("T", "U") for a in ("create", "delete")
    ]
    # The same text, cut at another place.
    kinds += [("tenantT", "U", "create"), ("tenant", "TU", "create"), ("tenant", "T", "Ucreate")]
    await written.add(
        *(
            each
            for number, (namespace, elem_type, action) in enumerate(kinds)
            for each in ended(
                f"{number}",
                now,
                number + 1,
                namespace=namespace,
                elem_type=elem_type,
                action=action,
            )
        )
    )
    rows = await ops.fetch(
        "SELECT namespace, elem_type, action_name, ended, max_seconds FROM ops.durations_v1"
    )
    assert [tuple(row)[3] for row in rows] == [1] * len(kinds)
    assert {tuple(row)[:3]: row["max_seconds"] for row in rows} == {
        kind: number + 1 for number, kind in enumerate(kinds)
    }
    one = (
        "SELECT max_seconds FROM ops.durations_v1"
        " WHERE namespace = 'zone' AND elem_type = 'U' AND action_name = 'delete'"
    )
    assert await ops.fetchval(one) == 8
