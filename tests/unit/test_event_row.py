"""The rows of events in the table `event`."""

from datetime import UTC, datetime, timedelta

from execution_events.events import Occurrence
from execution_events.projection.fold import FoldedEvent
from execution_events.store.write.rows import EVENT_COLUMNS, event_row

FIRST, LAST, POSITION = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(3))


def test_each_value_stands_at_its_columns_position() -> None:
    texts = {
        name: name for name, kind in Occurrence.__annotations__.items() if kind in (str, "str")
    }
    latest = Occurrence(**texts, first_timestamp=LAST, last_timestamp=LAST, count=1)
    row = event_row(FoldedEvent(latest, 7, FIRST, POSITION), b"body", 5)
    expected = texts | {
        "first_timestamp": FIRST,
        "last_timestamp": LAST,
        "count": 7,
        "list_position": POSITION,
        "body": b"body",
        "element_hash": 5,
    }
    assert dict(zip(EVENT_COLUMNS, row, strict=True)) == {
        column: expected[column] for column in EVENT_COLUMNS
    }
