"""Hypothesis strategies for occurrences, records and logs; most results lie near a bound."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from execution_events import events, wire
from execution_events.events import Occurrence
from execution_events.wire import Origin
from tests.support.golden import KafkaRecord

ASTRAL = "😀"
"""One character of four bytes."""

# Anything that UTF-8 can hold, without NUL.
_characters = st.characters(codec="utf-8", exclude_characters="\0")


def _bounded(most_characters: int, most_bytes: int, at_bound: str) -> st.SearchStrategy[str]:
    free = st.text(_characters, min_size=1, max_size=60)
    filled = st.sampled_from(["x", "é", "元", ASTRAL]).map(
        lambda c: c * min(most_characters, most_bytes // len(c.encode()))
    )
    return st.one_of(free, filled, st.just(at_bound)).filter(
        lambda text: len(text) <= most_characters and len(text.encode()) <= most_bytes
    )


names = _bounded(events.NAME_MAX_BYTES, events.NAME_MAX_BYTES, "a" + "é" * 126)
texts = _bounded(events.TEXT_MAX_CHARACTERS, 1024, ASTRAL * 256)
messages = st.one_of(st.just(""), _bounded(events.MESSAGE_MAX_BYTES, 16384, "x" * 16384))
execution_ids = st.from_regex(events.EXECUTION_ID, fullmatch=True)
counts = st.one_of(
    st.integers(1, 3), st.integers(1, 2**31 - 1), st.sampled_from([2**31 - 2, 2**31 - 1])
)
timestamps = st.datetimes(
    min_value=events.TIMESTAMP_MIN.replace(tzinfo=None),
    max_value=events.TIMESTAMP_MAX.replace(tzinfo=None),
    timezones=st.just(UTC),
)
origins = st.builds(
    Origin,
    texts,
    st.one_of(st.integers(0, wire.SEQUENCE_MAX), st.sampled_from([0, wire.SEQUENCE_MAX])),
)


@st.composite
def occurrences(draw: st.DrawFn) -> Occurrence:
    """Any occurrence within the bounds of a record."""
    first, last = sorted((draw(timestamps), draw(timestamps)))
    return Occurrence(
        execution_id=draw(execution_ids),
        namespace=draw(names),
        name=draw(names),
        object_name=draw(names),
        object_namespace=draw(names),
        reason=draw(texts),
        message=draw(messages),
        first_timestamp=first,
        last_timestamp=last,
        count=draw(counts),
        type=draw(texts),
        elem_type=draw(texts),
        elem_id=draw(texts),
        action_name=draw(texts),
    )


_START = datetime(2018, 8, 20, 6, 41, 44, tzinfo=UTC)
_moments = st.integers(0, 3).map(lambda seconds: _START + timedelta(seconds=seconds))


@st.composite
def crowded_occurrences(draw: st.DrawFn) -> Occurrence:
    """Occurrences of few events at few moments, so that they meet and tie.

    UTF-16 would sort the names otherwise than UTF-8 does. The other fields differ freely, so that
    they identify their occurrence.
    """
    first, last = sorted((draw(_moments), draw(_moments)))
    mark = str(draw(st.integers(0, 999)))
    return Occurrence(
        execution_id=draw(st.sampled_from(["a", "b"])),
        namespace=draw(st.sampled_from(["n", "\uffee"])),
        name=draw(st.sampled_from(["\uffee.1", ASTRAL + ".1"])),
        object_name=mark,
        object_namespace=mark,
        reason=mark,
        message=mark,
        first_timestamp=first,
        last_timestamp=last,
        count=draw(counts),
        type=mark,
        elem_type=mark,
        elem_id=mark,
        action_name=mark,
    )


@st.composite
def logs(draw: st.DrawFn) -> list[KafkaRecord]:
    """Records in the order of their arrival, from few partitions and sources.

    There are copies, gaps, records without an origin, without a key, and ones that are refused.
    """
    records = []
    for offset in range(draw(st.integers(0, 12))):
        key, value = wire.encode(draw(crowded_occurrences()))
        origin = draw(st.none() | st.builds(Origin, st.sampled_from(["s", "t"]), st.integers(0, 6)))
        records.append(
            KafkaRecord(
                key=draw(st.sampled_from([key, key, None])),
                value=draw(st.sampled_from([value, value, value, b"poison", None])),
                headers=tuple(wire.encode_headers(origin.source, origin.sequence))
                if origin
                else (),
                partition=draw(st.integers(0, 1)),
                offset=offset,
            )
        )
    return records


@st.composite
def splits(draw: st.DrawFn, length: int) -> list[slice]:
    """Any division of a sequence of `length` into parts, empty ones among them."""
    cuts = [0, *sorted(draw(st.lists(st.integers(0, length), max_size=4))), length]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


# Documents near the bounds of the contract, on both sides of them.


@st.composite
def _mostly(draw: st.DrawFn, good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> Any:
    return draw(good if draw(st.integers(0, 11)) else bad)


_dates = _mostly(
    st.one_of(
        st.sampled_from(["1969-12-31", "1970-01-01", "1970-01-02", "9999-12-30", "9999-12-31"]),
        st.sampled_from(["2000-02-29", "2016-02-29", "2018-01-31", "2018-02-28", "2400-02-29"]),
        st.dates(date(1970, 1, 1)).map(str),
    ),
    st.one_of(
        st.sampled_from(["0000-01-01", "1969-12-30", "2018-00-01", "2018-01-00", "2018-12-32"]),
        st.sampled_from(["2018-02-29", "2016-02-30", "2018-04-31", "2018-13-01", "2100-02-29"]),
        st.dates().map(str),
    ),
)
_times = _mostly(
    st.sampled_from(["00:00:00", "00:00:59", "12:30:00", "23:58:59", "23:59:59"]),
    st.sampled_from(["24:00:00", "23:60:00", "23:59:60", "06:41", "6:41:44"]),
)
_fractions = st.just("") | st.from_regex(r"\.[0-9]{0,9}", fullmatch=True)
_zones = _mostly(
    st.sampled_from(["Z", "+00:00", "-00:01", "+00:01", "-23:59", "+23:59"]),
    st.sampled_from(["", "z", "+24:00", "+00:60", "+0800", "+08", "Z\n"]),
)
_wrong_types: st.SearchStrategy[Any] = st.sampled_from([None, True, 1, 1.0, [], {}, ["x"]])
_written_timestamps = _mostly(
    st.builds(
        "{}{}{}{}{}".format,
        _dates,
        _mostly(st.just("T"), st.sampled_from("t ")),
        _times,
        _fractions,
        _zones,
    ),
    _wrong_types,
)
_edges: st.SearchStrategy[str] = st.builds(
    lambda character, size, tail: character * size + tail,
    st.sampled_from(["x", "é", "元", ASTRAL]),
    st.sampled_from([0, 1, 63, 64, 84, 85, 126, 127, 128, 129, 252, 253, 254, 255, 256, 257]),
    _mostly(st.sampled_from(["", "x"]), st.sampled_from(["\n", "\0", "\ud800"])),
)
_written_texts = _mostly(_edges, st.text() | _wrong_types)
_references = _mostly(
    st.builds(lambda name: {"name": name, "namespace": "n"}, _written_texts)
    | st.builds(lambda name: {"name": "n", "namespace": name}, _written_texts),
    st.sampled_from([{}, {"name": "n"}, {"namespace": "n"}]) | _wrong_types,
)
_written_messages = _written_texts | st.builds(
    lambda character, size: character * size,
    st.sampled_from(["x", "é", ASTRAL]),
    st.sampled_from([0, 4096, 4097, 8192, 8193, 16384, 16385]),
)
_written_counts = _mostly(
    st.sampled_from([0, 1, 2**31 - 1, 2**31, 0.0, 1.0, 1.5, 2.0**31 - 1, 2.0**31])
    | st.sampled_from([True, False, -1, 2**63, 2**64, 1e300, 7.0]),
    st.integers() | st.sampled_from(["1", None, [1]]),
)
_MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "executionId": _written_texts,
    "metadata": _references,
    "involvedObject": _references,
    "reason": _written_texts,
    "message": _written_messages,
    "firstTimestamp": _written_timestamps,
    "lastTimestamp": _written_timestamps,
    "count": _written_counts,
    "type": _written_texts,
    "elemType": _written_texts,
    "elemId": _written_texts,
    "actionName": _written_texts,
    "unknown": _written_texts,
}
_groups = st.one_of(
    st.sampled_from(sorted(_MEMBERS)).map(lambda member: [member]),
    st.lists(st.sampled_from(sorted(_MEMBERS)), max_size=3, unique=True),
    st.just(["firstTimestamp", "lastTimestamp"]),
    st.just(["count"]),
)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """JSON documents that are records' values but for a few members, if at all."""
    document: dict[str, Any] = {
        "executionId": "e",
        "metadata": {"name": "o.1", "namespace": "n"},
        "reason": "r",
        "type": "t",
        "elemType": "t",
        "elemId": "i",
        "actionName": "a",
    }
    for member in draw(_groups):
        if draw(st.integers(0, 15)):
            document[member] = draw(_MEMBERS[member])
        else:
            document.pop(member, None)
    return draw(_mostly(st.just(document), _wrong_types))
