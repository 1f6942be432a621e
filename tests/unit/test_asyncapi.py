"""The AsyncAPI document is valid and agrees with the code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from execution_events import wire
from execution_events.errors import RecordRefusedError
from execution_events.settings import Settings
from execution_events.store.write.prune import SOURCE_RETENTION
from execution_events.wire import Origin
from tests.support import golden
from tests.support.golden import SCHEMAS


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


DOCUMENT = load(SCHEMAS / "asyncapi.json")
EVENT = load(SCHEMAS / "event.schema.json")
ASYNCAPI = load(Path(__file__).parents[1] / "support" / "asyncapi" / "schema-3.0.0.json")
CHANNEL = DOCUMENT["channels"]["executionEvents"]
OPERATION = DOCUMENT["operations"]["reportOccurrences"]
MESSAGE = CHANNEL["messages"]["occurrence"]
HEADERS = Draft7Validator(MESSAGE["headers"])
PAYLOAD = Draft202012Validator(EVENT)
GOLDEN = {case.name: case for case in golden.records()}


def references(node: Any) -> Iterator[str]:
    """Yield every reference in a JSON document."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from references(child)


def resolve(reference: str) -> Any:
    """Return the target of a reference in the document."""
    file, _, pointer = reference.partition("#")
    target = load(SCHEMAS / file) if file else DOCUMENT
    for step in pointer.split("/")[1:]:
        target = target[step]
    return target


def test_it_is_asyncapi_3_0() -> None:
    Draft7Validator(ASYNCAPI).validate(DOCUMENT)


def test_every_reference_has_a_target() -> None:
    found = list(references(DOCUMENT))
    assert "event.schema.json" in found
    assert all(isinstance(resolve(reference), dict) for reference in found)
    assert resolve(OPERATION["channel"]["$ref"]) is CHANNEL
    assert [resolve(message["$ref"]) for message in OPERATION["messages"]] == [MESSAGE]


def test_the_value_and_the_key_are_those_of_the_event_schema() -> None:
    assert resolve(MESSAGE["payload"]["schema"]["$ref"]) == EVENT
    (key,) = MESSAGE["bindings"]["kafka"]["key"]["allOf"]
    assert resolve(key["$ref"]) == EVENT["properties"]["executionId"]


def test_it_has_the_defaults_of_the_service() -> None:
    defaults = Settings()
    assert CHANNEL["address"] == defaults.kafka.topic
    variables = DOCUMENT["servers"]["kafka"]["variables"]
    assert variables["bootstrapServers"]["default"] == defaults.kafka.bootstrap_servers
    assert f" {SOURCE_RETENTION.days} days" in OPERATION["description"]


def test_it_has_every_reason_of_a_dead_letter() -> None:
    assert MESSAGE["x-dead-letter-reasons"].keys() == wire.REASONS


@pytest.mark.parametrize("example", [pytest.param(e, id=e["name"]) for e in MESSAGE["examples"]])
def test_an_example_is_a_golden_record(example: dict[str, Any]) -> None:
    HEADERS.validate(example["headers"])
    PAYLOAD.validate(example["payload"])
    case = GOLDEN[example["name"]]
    assert (case.record.key or b"").decode() == example["summary"].rpartition(" Key: ")[2]
    assert {name: value.encode() for name, value in example["headers"].items()} == dict(
        case.record.headers
    )
    # As texts: members are in the order that the publisher sends.
    assert json.dumps(example["payload"]) == json.dumps(json.loads(case.record.value or b""))


def test_the_headers_of_the_publisher_are_described() -> None:
    origin = Origin("worker", 7)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {
        name: value.decode()
        for name, value in wire.encode_headers(origin.source, origin.sequence, trace)
    }
    HEADERS.validate(sent)
    properties = MESSAGE["headers"]["properties"]
    assert properties.keys() - sent.keys() == {"ce_time", "ce_subject"}
    assert sent.keys() <= properties.keys()
    constants = {name: each["const"] for name, each in properties.items() if "const" in each}
    assert constants.items() <= sent.items()
    assert constants.keys() == {"ce_specversion", "ce_type", "content-type"}


def test_the_examples_of_headers_are_valid() -> None:
    for schema in MESSAGE["headers"]["properties"].values():
        Draft7Validator.check_schema(schema)
        for example in schema.get("examples", []):
            Draft7Validator(schema).validate(example)


sources = st.text(max_size=2) | st.sampled_from(["é" * 256, "é" * 257, "𠀀" * 256, "a\0", "a\n"])
sequences = st.sampled_from(
    ["", "0", "007", "1\n", "-1", "+1", "1.0", "1e3", "٣", " 1", "0" * 19, "0" * 20]
) | st.integers(wire.SEQUENCE_MAX - 1, wire.SEQUENCE_MAX + 1).map(str)


@given(st.fixed_dictionaries({}, optional={"ce_source": sources, "ce_sequence": sequences}))
@settings(max_examples=500, deadline=None)
def test_headers_are_refused_according_to_the_document(headers: dict[str, str]) -> None:
    valid = HEADERS.is_valid(headers)
    # A schema of strings cannot express this limit; the description does.
    if valid and int(headers.get("ce_sequence", "0")) > wire.SEQUENCE_MAX:
        assert (
            str(wire.SEQUENCE_MAX)
            in (MESSAGE["headers"]["properties"]["ce_sequence"]["description"])
        )
        valid = False
    event(f"{sorted(headers)} {valid}")
    sent = [(name, text.encode()) for name, text in headers.items()]
    if valid:
        wire.decode_origin(sent)
    else:
        with pytest.raises(RecordRefusedError) as refused:
            wire.decode_origin(sent)
        assert refused.value.reason == wire.INVALID_HEADERS
