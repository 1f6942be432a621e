"""The OpenAPI document is consistent, and its event is the event of the topic."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from execution_events import events, wire
from execution_events.bilingual import half
from execution_events.reader import execution_query, parameters, query
from execution_events.reader.watch import WatchTimeouts
from tests.support import golden
from tests.support.golden import SCHEMAS

DOCUMENT = json.loads((SCHEMAS / "openapi.json").read_text(encoding="utf-8"))
PATH = DOCUMENT["paths"]["/v1/executions/{execution_id}/events"]
EXECUTIONS = DOCUMENT["paths"]["/v1/executions"]
OK = PATH["get"]["responses"]["200"]
EXAMPLE = OK["content"]["application/json"]["examples"]["three"]["value"]
EVENT = DOCUMENT["components"]["schemas"]["Event"]
SEED = golden.load("seed.json")


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document."""
    if isinstance(node, dict):
        yield node
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from nodes(child)


def resolve(node: dict[str, Any]) -> Any:
    """Return a node, or the part of the document that it refers to."""
    if "$ref" not in node:
        return node
    target = DOCUMENT
    for step in node["$ref"].removeprefix("#/").split("/"):
        target = target[step]
    return target


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator for a schema whose references start at the document's root."""
    return Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def test_it_is_openapi_3_1_and_every_reference_resolves() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    references = [node for node in nodes(DOCUMENT) if "$ref" in node]
    assert references
    assert all(isinstance(resolve(reference), dict) for reference in references)


def test_every_schema_is_valid() -> None:
    schemas = [node["schema"] for node in nodes(DOCUMENT) if "schema" in node]
    for schema in [*DOCUMENT["components"]["schemas"].values(), *schemas]:
        Draft202012Validator.check_schema(schema)


def test_the_schema_of_the_execution_id_has_its_bounds() -> None:
    (parameter,) = (p for p in map(resolve, PATH["parameters"]) if p["in"] == "path")
    assert parameter["name"] == "execution_id"
    assert parameter["required"] is True
    validator(parameter["schema"]).validate(parameter["example"])
    for right in ("a" * 128, "...", "..a", ".a.", "-.", "...."):
        assert validator(parameter["schema"]).is_valid(right)
    for wrong in ("", "a" * 129, "a/b", "a\n", "é", ".", ".."):
        assert not validator(parameter["schema"]).is_valid(wrong)


def test_every_example_body_is_valid() -> None:
    bodies = [
        node for node in nodes(DOCUMENT) if "schema" in node and {"example", "examples"} & set(node)
    ]
    assert len(bodies) >= 6
    for body in bodies:
        examples = [example["value"] for example in body.get("examples", {}).values()]
        for example in [*examples, *([body["example"]] if "example" in body else [])]:
            validator(body["schema"]).validate(example)


def test_the_example_is_the_seed_execution_in_order() -> None:
    published = [json.loads(case.record.value or b"") for case in SEED]
    assert {event.pop("executionId") for event in published} == {
        resolve(PATH["parameters"][0])["example"]
    }
    assert json.dumps(EXAMPLE) == json.dumps(sorted(published, key=list_position))


def list_position(event: dict[str, Any]) -> tuple[str, bytes, bytes]:
    metadata = event["metadata"]
    return event["firstTimestamp"], metadata["name"].encode(), metadata["namespace"].encode()


def test_the_event_has_the_names_of_the_record_in_their_order() -> None:
    assert SEED[0].occurrence is not None
    _, value = wire.encode(SEED[0].occurrence)
    record = json.loads(value)
    assert ["executionId", *EVENT["properties"]] == list(record)
    assert EVENT["required"] == list(EVENT["properties"])
    assert list(DOCUMENT["components"]["schemas"]["Reference"]["properties"]) == list(
        record["metadata"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"executionId": "e"},
        {"metadata": {"name": "n", "namespace": "n", "uid": "1"}},
        {"involvedObject": None},
        {"count": 0},
        {"count": events.COUNT_MAX + 1},
        {"reason": ""},
        {"firstTimestamp": "2018-08-20T06:41:44.5Z"},
        {"lastTimestamp": "2018-08-20T06:41:44+00:00"},
    ],
    ids=str,
)
def test_the_event_schema_refuses_anything_else(change: dict[str, Any]) -> None:
    validator(EVENT).validate(EXAMPLE[0])
    with pytest.raises(ValidationError):
        validator(EVENT).validate(EXAMPLE[0] | change)


@pytest.mark.parametrize("member", EVENT["properties"])
def test_every_member_of_the_event_is_required(member: str) -> None:
    event = {name: value for name, value in EXAMPLE[0].items() if name != member}
    assert not validator(EVENT).is_valid(event)


@pytest.mark.parametrize("time", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_the_event_schema_accepts_the_bounds(time: str) -> None:
    bounds = {"count": events.COUNT_MAX, "message": "", "lastTimestamp": time}
    validator(EVENT).validate(EXAMPLE[0] | bounds)


@pytest.mark.parametrize("path", [PATH, EXECUTIONS], ids=["events", "executions"])
def test_every_response_has_its_headers(path: dict[str, Any]) -> None:
    assert {"200", "304", "400", "404", "405", "500", "503"} <= path["get"]["responses"].keys()
    for operation in (path["get"], path["head"]):
        for status, response in operation["responses"].items():
            headers = {
                name: resolve(header) for name, header in resolve(response)["headers"].items()
            }
            assert headers["X-Request-Id"]["required"] is True
            if status in ("200", "304"):
                assert headers["Cache-Control"]["schema"]["enum"][0] == "private, no-cache"
                # A watch has no entity tag, and neither have executions that are not listed by id.
                assert headers["ETag"]["required"] is (status == "304")
                assert headers["Vary"]["required"] is True
    assert all("content" not in response for response in path["head"]["responses"].values())


@pytest.mark.parametrize("path", [PATH, EXECUTIONS], ids=["events", "executions"])
@pytest.mark.parametrize(
    "status",
    ["400", "401", "404", "405", "406", "413", "414", "421", "429", "431", "500", "503"],
)
def test_the_error_code_contains_the_status(path: dict[str, Any], status: str) -> None:
    body = resolve(path["get"]["responses"][status])["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/Error"}
    for example in body["examples"].values():
        assert list(example["value"]) == ["error_code", "error_msg"]
        assert example["value"]["error_code"] == f"EE.0{status}"


def query_parameters(path: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        parameter["name"]: parameter
        for parameter in map(resolve, path["parameters"])
        if parameter["in"] == "query"
    }


PARAMETERS = {
    (of, name): parameter
    for of, path in (("events", PATH), ("executions", EXECUTIONS))
    for name, parameter in query_parameters(path).items()
}


def parse(of: str, name: str, value: str) -> None:
    content = urlencode({name: value}).encode()
    if of == "executions":
        execution_query.parse_execution_query(content)
    else:
        query.parse_query("e", content, is_watch=name == "lastEventId")


def values(parameter: dict[str, Any], value: object) -> list[tuple[str, str]]:
    """Return `value` in the parameter's style."""
    return [
        (parameter["name"], str(one)) for one in (value if isinstance(value, list) else [value])
    ]


def test_the_documented_parameters_are_the_parsed_ones() -> None:
    assert set(query_parameters(PATH)) == query._WATCH_PARAMETERS
    assert set(query_parameters(EXECUTIONS)) == execution_query._PARAMETERS


@pytest.mark.parametrize(("of", "name"), [key for key in PARAMETERS if key[1] != "marker"])
def test_a_parameter_accepts_what_its_schema_accepts(of: str, name: str) -> None:
    parameter = PARAMETERS[of, name]
    validate = validator(parameter["schema"])
    repeated = parameter["schema"].get("type") == "array"
    accepted, candidates = [], [
        *("1", "1000", "0", "1001", "-1", "1.5", "", "asc", "desc", "ASC", "zh", "en", "both"),
        *("a" * 256, "a" * 257, "a\0", "2018-08-20T06:41:44Z", "2018-08-20T06:41:44.5+08:00"),
        *("2018-08-20", "2018-08-20t06:41:44z", "2018-08-20T06:41:60Z", "元", "😀" * 256),
        *("1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"),
        *("a" * 128, "a" * 129, "..", "timed_out", "timedOut", "unknown"),
    ]  # fmt: skip
    if "example" in parameter:
        candidates += [value for _, value in values(parameter, parameter["example"])]
    for value in candidates:
        typed: object = int(value) if name == "limit" and value.lstrip("-").isdigit() else value
        try:
            parse(of, name, value)
            accepted.append(value)
        except parameters.QueryError:
            pass
        assert validate.is_valid([typed] if repeated else typed) == (value in accepted), value
    assert accepted
    for number in (parameters.VALUES_MAX, parameters.VALUES_MAX + 1) if repeated else ():
        assert validate.is_valid([accepted[0]] * number) == (number <= parameters.VALUES_MAX)


def test_the_example_of_lang_is_the_rendered_body() -> None:
    examples = OK["content"]["application/json"]["examples"]
    [shown] = examples["english"]["value"]
    for member in ("reason", "message"):
        assert shown[member] == half(EXAMPLE[0][member], "en")


def test_no_schema_has_a_format_beside_a_pattern() -> None:
    """openapi-generator 7.14 (Python) writes a client from it that cannot be imported."""
    assert [node for node in nodes(DOCUMENT) if {"format", "pattern"} <= node.keys()] == []


def test_a_watch_says_how_often_it_comments_and_which_timeout_a_client_needs() -> None:
    """A client with a shorter timeout ends a watch without changes again and again."""
    interval = f"A comment is sent every {WatchTimeouts().keepalive} seconds"
    assert interval in OK["content"]["text/event-stream"]["schema"]["description"]
    text = PATH["get"]["description"].partition(interval)[2].partition(".")[0]
    recommended, httpx_default = map(int, re.findall(r"\d+", text))
    assert httpx_default < WatchTimeouts().keepalive < recommended
