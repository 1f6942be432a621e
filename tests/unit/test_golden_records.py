"""The golden records, the decoder and the JSON Schema agree."""

import json
import re
from calendar import timegm
from time import strptime
from typing import Any

import pytest
from hypothesis import event, given, settings
from jsonschema import Draft202012Validator

from execution_events import wire
from execution_events.errors import RecordRefusedError
from execution_events.projection import batch
from execution_events.projection.batch import DeadLetter
from tests.support import golden, strategies
from tests.support.golden import SCHEMAS, Golden

SCHEMA = json.loads((SCHEMAS / "event.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
RECORDS = golden.records()

each_record = pytest.mark.parametrize("case", [pytest.param(r, id=r.name) for r in RECORDS])


@each_record
def test_a_golden_record_has_its_outcome(case: Golden) -> None:
    read = batch.read(case.record)
    assert read.record is case.record
    assert read.origin == case.origin
    if case.occurrence is not None:
        assert read.outcome == case.occurrence
    else:
        assert isinstance(read.outcome, DeadLetter)
        assert read.outcome.refusal.reason == case.refused


@each_record
def test_decoder_and_schema_agree_on_the_value(case: Golden) -> None:
    valid = valid_for_schema(case.record.value)
    if case.beyond_schema is not None:
        assert valid, "the schema can say this: it is no exception"
        assert not accepted(case.record.value)
    else:
        assert accepted(case.record.value) == valid


def test_every_reason_has_a_golden_record() -> None:
    assert {case.refused for case in RECORDS if case.refused} == wire.REASONS


def test_every_rule_beyond_the_schema_is_stated_and_has_a_golden_record() -> None:
    rules = {case.beyond_schema for case in RECORDS if case.beyond_schema}
    assert set(re.findall(r"\(([a-z-]+)\)", SCHEMA["$comment"])) == rules
    readme = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^- `([a-z-]+)`:", readme, re.MULTILINE)) == rules


def test_schema_is_valid_and_its_examples_are() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for schema in [*SCHEMA["properties"].values(), *SCHEMA["$defs"].values()]:
        defaults = [schema["default"]] if "default" in schema else []
        for example in schema.get("examples", []) + defaults:
            VALIDATOR.evolve(schema=schema).validate(example)


@given(strategies.documents())
@settings(max_examples=1500, deadline=None)
def test_decoder_and_schema_agree_near_the_bounds(document: Any) -> None:
    """The values that the decoder alone refuses are those of the stated rules."""
    value = json.dumps(document).encode()
    valid = VALIDATOR.is_valid(document)
    broken = broken_rules(document) if valid else set()
    event(f"schema {valid}, beyond it {sorted(broken)}")
    assert accepted(value) == (valid and not broken)


def accepted(value: bytes | None) -> bool:
    try:
        wire.decode(None, value, 0)
    except RecordRefusedError:
        return False
    return True


def valid_for_schema(value: bytes | None) -> bool:
    """Return whether `value` is JSON (RFC 8259) and valid for the schema."""
    try:
        # `int` raises ValueError: JSON has no NaN and no Infinity.
        document = json.loads((value or b"").decode(), parse_constant=int)
    except (ValueError, RecursionError):
        return False
    return bool(VALIDATOR.is_valid(document))


def broken_rules(document: Any) -> set[str]:
    """Return the rules beyond the schema that a valid document breaks."""
    broken = set()
    references = [document["metadata"], document.get("involvedObject", {})]
    names = [reference.get(key, "") for reference in references for key in ("name", "namespace")]
    bounded = [(name, 253) for name in names] + [(document.get("message", ""), 16384)]
    if any(len(text.encode("utf-8", "surrogatepass")) > most for text, most in bounded):
        broken.add("byte-length")
    if re.search("[\ud800-\udfff]", json.dumps(document, ensure_ascii=False)):
        broken.add("surrogates")
    if isinstance(document.get("count"), float):
        broken.add("integer-notation")
    times = [microseconds(document[key]) for key in TIMES if key in document]
    if not all(0 <= time < 253402300800 * 10**6 for time in times):
        broken.add("utc-years")
    if len(times) == 2 and times[0] > times[1]:
        broken.add("time-order")
    return broken


TIMES = ("firstTimestamp", "lastTimestamp")


def microseconds(text: str) -> int:
    """Return microseconds since the Unix epoch, in integers, beyond the range of `datetime`."""
    zone = text.removesuffix("Z")[19:].lstrip(".0123456789")
    fraction = text[19:].removesuffix("Z").removesuffix(zone)[1:7].ljust(6, "0")
    offset = (int(zone[1:3]) * 60 + int(zone[4:6])) * (-1 if zone[0] == "-" else 1) if zone else 0
    seconds = timegm(strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    return (seconds - offset * 60) * 10**6 + int(fraction)
