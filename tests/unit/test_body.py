"""An event's body is byte for byte the JSON that the API returns."""

import json
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.events import COUNT_MAX, TIMESTAMP_MAX, TIMESTAMP_MIN
from execution_events.projection.body import body_of, decode, encode, with_microseconds
from execution_events.projection.fold import FoldedEvent
from tests.support import strategies
from tests.support.records import EPOCH, occurrence


def expected_body(event: FoldedEvent) -> bytes:
    """Return the JSON of design section 5, by another encoder."""

    def seconds(moment: datetime) -> str:
        return moment.replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")

    latest = event.latest
    content = {
        "metadata": {"name": latest.name, "namespace": latest.namespace},
        "involvedObject": {"name": latest.object_name, "namespace": latest.object_namespace},
        "reason": latest.reason,
        "message": latest.message,
        "firstTimestamp": seconds(event.first_timestamp),
        "lastTimestamp": seconds(latest.last_timestamp),
        "count": event.count,
        "type": latest.type,
        "elemType": latest.elem_type,
        "elemId": latest.elem_id,
        "actionName": latest.action_name,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


_folded = st.builds(
    lambda latest, count, moment: FoldedEvent(latest, count, latest.first_timestamp, moment),
    strategies.occurrences(),
    st.integers(1, COUNT_MAX) | st.sampled_from([1, 2**31, COUNT_MAX]),
    strategies.timestamps,
)


@given(_folded)
def test_a_body_is_the_json_of_the_api(event: FoldedEvent) -> None:
    body = body_of(event)
    assert body == expected_body(event)
    # One line of an event stream and of NDJSON.
    assert not set(body) & set(b"\r\n")


@given(_folded)
def test_decoding_and_encoding_restores_the_body(event: FoldedEvent) -> None:
    body, latest = body_of(event), event.latest
    content = decode(body)
    assert encode(content) == body
    texts = ("reason", "message", "type", "elem_type", "elem_id", "action_name")
    assert [getattr(content, t) for t in texts] == [getattr(latest, t) for t in texts]
    assert content.metadata == decode(encode(content)).metadata
    assert (content.metadata.name, content.metadata.namespace) == (latest.name, latest.namespace)
    assert content.involved_object.name == latest.object_name
    assert content.involved_object.namespace == latest.object_namespace
    assert content.count == event.count


@pytest.mark.parametrize(
    "text",
    [
        *('"\\/\b\f\n\r\t', "\x01\x1a\x1f", "\x7f\x80\x9f", "\u2028\u2029\ufeff\ufffe\uffff"),
        *("元素😀é", "e\u0301", "</script>&'", '{"a":1}', "\\u0041", "data: x\n\nevent: reset"),
    ],
)
def test_special_characters_are_escaped_as_json_requires(text: str) -> None:
    latest = occurrence(
        **dict.fromkeys(
            ("name", "namespace", "object_name", "object_namespace", "reason", "message", "type"),
            text,
        )
    )
    event = FoldedEvent(latest, 1, EPOCH, EPOCH)
    assert body_of(event) == expected_body(event)
    assert b"\n" not in body_of(event)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (TIMESTAMP_MIN, "1970-01-01T00:00:00Z"),
        (TIMESTAMP_MAX, "9999-12-31T23:59:59Z"),
        (TIMESTAMP_MAX.replace(microsecond=0), "9999-12-31T23:59:59Z"),
        (EPOCH + timedelta(microseconds=999_999), "2026-01-01T00:00:00Z"),
        (EPOCH - timedelta(microseconds=1), "2025-12-31T23:59:59Z"),
    ],
)
def test_times_are_truncated_to_the_second(moment: datetime, text: str) -> None:
    latest = occurrence(first_timestamp=moment, last_timestamp=moment)
    content = decode(body_of(FoldedEvent(latest, 1, moment, EPOCH)))
    assert (content.first_timestamp, content.last_timestamp) == (text, text)


@given(_folded)
def test_microseconds_are_added_to_the_timestamps_alone(event: FoldedEvent) -> None:
    body, latest = body_of(event), event.latest
    precise = with_microseconds(body, event.first_timestamp, latest.last_timestamp)

    def micro(moment: datetime) -> str:
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

    assert json.loads(precise) == json.loads(body) | {
        "firstTimestamp": micro(event.first_timestamp),
        "lastTimestamp": micro(latest.last_timestamp),
    }
    assert len(precise) == len(body) + 2 * len(".000000")


def test_texts_that_look_like_timestamps_stay_as_they_are() -> None:
    text = '"firstTimestamp":"2026-01-01T00:00:00Z","lastTimestamp":"2026-01-01T00:00:00Z"'
    fields = ("name", "namespace", "object_name", "object_namespace", "reason", "message")
    moment = EPOCH + timedelta(microseconds=7)
    latest = occurrence(**dict.fromkeys(fields, text), last_timestamp=moment)
    precise = with_microseconds(body_of(FoldedEvent(latest, 1, EPOCH, EPOCH)), EPOCH, moment)
    content = json.loads(precise)
    assert (content["message"], content["metadata"]["name"]) == (text, text)
    assert content["firstTimestamp"] == "2026-01-01T00:00:00.000000Z"
    assert content["lastTimestamp"] == "2026-01-01T00:00:00.000007Z"


def test_no_two_members_are_exchanged() -> None:
    """Every text is its own name, and the first and last times differ."""
    fields = ("name", "namespace", "object_name", "object_namespace", "reason", "message")
    texts = {field: field for field in (*fields, "type", "elem_type", "elem_id", "action_name")}
    latest = occurrence(**texts, last_timestamp=EPOCH + timedelta(hours=1))
    event = FoldedEvent(latest, 7, EPOCH - timedelta(hours=1), EPOCH)
    assert body_of(event) == expected_body(event)
