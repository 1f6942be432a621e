"""Filters and languages, against the real database."""

from collections.abc import AsyncIterator, Mapping

import pytest

from tests.support.readers import EVENTS, Reader, at, named, reading_only
from tests.support.servers import Servers

EVENTS_OF = [
    named(
        "start",
        1,
        reason="启动##ActionStart",
        message="元素(Job-A)开始. ## Element(Job-A) starts.",
        elem_id="Job-A",
    ),
    named(
        "finish",
        2,
        reason="执行成功 ## SuccessfulFinish",
        message="100% done ## 100% fertig_straße",
        action_name="delete",
        elem_type="KubeDAG.end",
        last_timestamp=at(20),
    ),
    named("warn", 3, type="Warning", reason="ActionFailed", message="## only the end", elem_id="b"),
    named("odd", 4.25, type="it's", reason="##", message="a ## b ## c", elem_id="c\\"),
]


CASES = {
    "k": "\N{KELVIN SIGN}",
    "s": "\N{LATIN SMALL LETTER LONG S}",
    "i": "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}",
    "ss": "ß",
    "a": "\N{FULLWIDTH LATIN CAPITAL LETTER A}",
    "é": "É",
    "σ": "Σ",
    "ff": "ﬀ",
}
"""Texts that Unicode folds to their key; each has an execution of its own."""


@pytest.fixture(scope="module")
async def filled(servers: Servers, template_database: str) -> AsyncIterator[Reader]:
    cases = [
        named(column, execution_id=f"case-{number}", reason=reason, message=message)
        for number, text in enumerate(CASES.values())
        for column, reason, message in (
            ("message", "x", f"[{text}-Az]"),
            ("reason", f"[{text}-Az]", ""),
        )
    ]
    async with reading_only(servers, template_database, *EVENTS_OF, *cases) as reader:
        yield reader


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, "start finish warn odd"),
        ({"order": "desc"}, "odd warn finish start"),
        ({"type": "Warning"}, "warn"),
        ({"type": "warning"}, ""),
        ({"type": ["Warning", "it's"]}, "warn odd"),
        ({"type": "Normal", "elemId": "Job-A"}, "start"),
        ({"type": "Normal", "elemId": "b"}, ""),
        ({"elemId": "c\\"}, "odd"),
        ({"elemType": "KubeDAG.end"}, "finish"),
        ({"actionName": "delete"}, "finish"),
        ({"actionName": ["delete", "create"]}, "start finish warn odd"),
        # The whole, or either half without its spaces.
        ({"reason": "启动##ActionStart"}, "start"),
        ({"reason": "启动"}, "start"),
        ({"reason": "ActionStart"}, "start"),
        ({"reason": "执行成功 ## SuccessfulFinish"}, "finish"),
        ({"reason": "执行成功"}, "finish"),
        ({"reason": "SuccessfulFinish"}, "finish"),
        ({"reason": "执行成功##SuccessfulFinish"}, ""),
        ({"reason": "ActionFailed"}, "warn"),
        ({"reason": "##"}, "odd"),
        ({"reason": "Action"}, ""),
        ({"reason": ["ActionFailed", "启动"]}, "start warn"),
        ({"excludeType": "Normal"}, "warn odd"),
        ({"excludeType": ["Normal", "Warning"]}, "odd"),
        ({"excludeReason": "ActionStart"}, "finish warn odd"),
        ({"excludeReason": ["启动", "ActionFailed"]}, "finish odd"),
        ({"excludeElemType": "KubeDAG.end"}, "start warn odd"),
        ({"excludeElemId": "Job-A"}, "finish warn odd"),
        ({"excludeActionName": "create"}, "finish"),
        ({"type": "Normal", "excludeType": "Normal"}, ""),
        # lastTimestamp ≥ since, firstTimestamp < until, to the microsecond.
        ({"since": "2026-01-01T00:00:04Z"}, "finish odd"),
        ({"since": "2026-01-01T00:00:20Z"}, "finish"),
        ({"since": "2026-01-01T00:00:20.000001Z"}, ""),
        ({"since": "2026-01-01T08:00:20+08:00"}, "finish"),
        ({"until": "2026-01-01T00:00:02Z"}, "start"),
        ({"until": "2026-01-01T00:00:02.000001Z"}, "start finish"),
        ({"until": "2026-01-01T00:00:04.25Z"}, "start finish warn"),
        ({"since": "2026-01-01T00:00:03Z", "until": "2026-01-01T00:00:04Z"}, "finish warn"),
        ({"until": "9999-12-31T23:59:59.999999Z"}, "start finish warn odd"),
        ({"since": "9999-12-31T23:59:59.999999Z"}, ""),
        # A substring of message or reason; only the letters A to Z match in either case.
        ({"q": "job-a"}, "start"),
        ({"q": "ELEMENT(JOB-A) STARTS."}, "start"),
        ({"q": "元素"}, "start"),
        ({"q": "actionf"}, "warn"),
        ({"q": "ACTION"}, "start warn"),
        ({"q": "%"}, "finish"),
        ({"q": "100% FERTIG_"}, "finish"),
        ({"q": "_"}, "finish"),
        ({"q": "STRASSE"}, ""),
        ({"q": "STRAßE"}, "finish"),
        ({"q": "\\"}, ""),
        ({"q": "endActionFailed"}, ""),
        ({"q": "a ## b"}, "odd"),
        ({"q": "action", "type": "Warning", "order": "desc"}, "warn"),
    ],
    ids=str,
)
async def test_filters_select_events(
    filled: Reader, parameters: Mapping[str, object], found: str
) -> None:
    assert await filled.names(**parameters) == found.split()
    pages, marker = [], None
    while True:
        page = await filled.get(EVENTS, params={**parameters, "limit": 1, **(marker or {})})
        pages += [event["metadata"]["name"] for event in page.json()]
        if "X-Next-Marker" not in page.headers:
            break
        marker = {"marker": page.headers["X-Next-Marker"]}
    assert pages == found.split()


@pytest.mark.parametrize("text", CASES)
async def test_q_folds_only_the_letters_a_to_z(filled: Reader, text: str) -> None:
    path = EVENTS.replace("execution-1", f"case-{list(CASES).index(text)}")
    stored = CASES[text]

    async def found(form: str) -> list[str]:
        return [event["metadata"]["name"] for event in await filled.events(path, {"q": form})]

    for form in (stored, f"[{stored}-AZ]", f"{stored}-aZ"):
        assert await found(form) == ["message", "reason"], form
    for form in {text, text.upper(), stored.casefold(), stored.lower(), stored.upper()} - {stored}:
        assert await found(f"[{form}-") == [], form


@pytest.mark.parametrize(
    ("lang", "reasons", "messages"),
    [
        (
            "zh",
            ["启动", "执行成功", "ActionFailed", ""],
            ["元素(Job-A)开始.", "100% done", "", "a"],
        ),
        (
            "en",
            ["ActionStart", "SuccessfulFinish", "ActionFailed", ""],
            ["Element(Job-A) starts.", "100% fertig_straße", "only the end", "b ## c"],
        ),
    ],
)
async def test_lang_shows_one_half_of_each_text(
    filled: Reader, lang: str, reasons: list[str], messages: list[str]
) -> None:
    response = await filled.api.get(EVENTS, params={"lang": lang})
    assert [event["reason"] for event in response.json()] == reasons
    assert [event["message"] for event in response.json()] == messages


async def test_filters_ignore_lang(filled: Reader) -> None:
    assert await filled.names(lang="en", q="启动", excludeType="it's") == ["start"]
