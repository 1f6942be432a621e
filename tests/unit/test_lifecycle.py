"""The catalogue: codes, texts in both languages, errors in messages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution_events.events import MESSAGE_MAX_BYTES, NORMAL, WARNING
from execution_events.publisher import lifecycle
from execution_events.publisher.lifecycle import Reason

TYPES = {
    "ActionStart": NORMAL,
    "SuccessfulFinish": NORMAL,
    "ActionRetry": WARNING,
    "ActionFailed": WARNING,
    "ActionTimeout": WARNING,
    "ActionCancelled": NORMAL,
}


def halves(message: str) -> tuple[str, str]:
    """The halves as `ops.events_v1` and the API's `lang` split them."""
    zh, _, en = message.partition("##")
    return zh.strip(), en.strip()


def test_the_catalogue_has_the_codes_and_types_of_the_life_cycle() -> None:
    assert {reason.text.partition("##")[2]: reason.type for reason in lifecycle.CATALOGUE} == TYPES
    assert len({reason.text for reason in lifecycle.CATALOGUE}) == len(TYPES)


@pytest.mark.parametrize("reason", lifecycle.CATALOGUE)
def test_texts_are_in_both_languages(reason: Reason) -> None:
    zh, code = reason.text.split("##")
    assert re.fullmatch("[\u4e00-\u9fff]+", zh)
    assert re.fullmatch("([A-Z][a-z]+)+", code)
    in_zh, in_en = halves(reason.message("job-a", "create"))
    assert re.search("[\u4e00-\u9fff]", in_zh)
    assert in_en.isascii()
    for half in (in_zh, in_en):
        assert "job-a" in half
        assert "create" in half


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            lifecycle.ACTION_START,
            "元素(job-a)开始执行(create)流程. ## Element(job-a) start to Action(create).",
        ),
        (
            lifecycle.SUCCESSFUL_FINISH,
            "元素(job-a)执行create成功. ## Element(job-a) execute Action: create successfully",
        ),
        (lifecycle.ACTION_RETRY, "元素(job-a)重试create. ## Element(job-a) retry Action: create"),
        (
            lifecycle.ACTION_FAILED,
            "元素(job-a)执行create失败. ## Element(job-a) execute Action: create failed",
        ),
    ],
)
def test_messages_of_the_platform_are_reproduced_exactly(reason: Reason, message: str) -> None:
    assert reason.message("job-a", "create") == message


def test_braces_and_separators_in_texts_are_harmless() -> None:
    message = lifecycle.ACTION_FAILED.message("{0}##{x}", "a###b", ValueError("c ## d####e"))
    zh, en = halves(message)
    assert zh == "元素({0}#{x})执行a#b失败: ValueError: c # d#e"
    assert en == "Element({0}#{x}) execute Action: a#b failed: ValueError: c # d#e"


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def nested(depth: int) -> BaseException:
    error: BaseException = ValueError("deep")
    for _ in range(depth):
        error = BaseExceptionGroup("group", [error])
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (ValueError(), "ValueError"),
        (ValueError("two\n  lines\r\n\tand\u2028more "), "ValueError: two lines and more"),
        (ValueError("a\0b\ud800c\x1b[31m"), "ValueError: a b c [31m"),
        (UnprintableError(), "UnprintableError"),
        (ValueError([object(), "at 0x7f"]), "ValueError: [<object object>, 'at 0x7f']"),
        (type("A##\n", (Exception,), {})("x"), "A# : x"),
        (
            ExceptionGroup("failed", [ValueError("a"), ExceptionGroup("b", [OSError("c")])]),
            "ExceptionGroup: failed (2 sub-exceptions): ValueError: a; "
            "ExceptionGroup: b (1 sub-exception): OSError: c",
        ),
    ],
)
def test_an_error_is_described_on_one_printable_line(error: BaseException, text: str) -> None:
    assert lifecycle.describe(error) == text


def test_deeply_nested_errors_are_described() -> None:
    assert lifecycle.describe(nested(5000)).startswith("ExceptionGroup")


characters = st.text(st.characters(), max_size=20)


@given(
    text=st.builds(
        lambda text, size, tail: text * size + tail,
        characters,
        st.sampled_from([1, 400, 1000, 9000]),
        characters,
    ),
    element=characters,
)
def test_a_message_with_an_error_can_always_be_published(text: str, element: str) -> None:
    element = element.replace("\0", "").encode("utf-8", "ignore").decode()
    message = lifecycle.ACTION_FAILED.message(element, "create", ValueError(text))
    assert len(message.encode()) <= MESSAGE_MAX_BYTES
    assert "\0" not in message
    zh, en = message.split(" ## ", 1)
    assert zh.partition("ValueError")[1:] == en.partition("ValueError")[1:]


def test_a_long_error_fills_the_message_and_is_cut_at_a_character() -> None:
    message = lifecycle.ACTION_FAILED.message("job-a", "create", ValueError("元" * 9999))
    assert MESSAGE_MAX_BYTES - 6 < len(message.encode()) <= MESSAGE_MAX_BYTES
    assert set(message.rpartition("ValueError: ")[2]) == {"元"}
