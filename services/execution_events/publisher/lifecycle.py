"""The catalogue of an action's life cycle: reasons and messages, in Chinese and English.

`projection/states.py` derives the states of actions from the codes of these reasons; producers in
other languages find both in `schemas/reasons.json`.
"""

import re
from typing import NamedTuple

from execution_events.events import MESSAGE_MAX_BYTES, NORMAL, WARNING

SEPARATOR = "##"
"""The separator between the halves of a bilingual text."""

# In the default repr of an object; it differs in each process, and a recurrence must not.
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+(?=>)")
_CONTROLS = re.compile(r"[\s\0-\x1f\x7f-\x9f\ud800-\udfff]+")


class Reason(NamedTuple):
    """A reason of the catalogue, with its message in both languages."""

    text: str
    zh: str
    en: str
    type: str

    @property
    def code(self) -> str:
        """The half of the text that decides the state."""
        return self.text.partition(SEPARATOR)[2]

    def message(self, element: str, action: str, error: BaseException | None = None) -> str:
        """Return the message `<zh> ## <en>`; both halves end with the error, if there is one.

        The error's text is cut so that the message stays within its limit.
        """
        element, action = _without_separators(str(element)), _without_separators(str(action))
        zh = self.zh.format(element=element, action=action)
        en = self.en.format(element=element, action=action)
        if error is None:
            return f"{zh}. {SEPARATOR} {en}"
        halves = f"{zh}:  {SEPARATOR} {en}: "
        limit = max(0, MESSAGE_MAX_BYTES - len(halves.encode(errors="replace"))) // 2
        text = describe(error).encode()[:limit].decode(errors="ignore")
        return f"{zh}: {text} {SEPARATOR} {en}: {text}"


ACTION_START = Reason(
    "启动##ActionStart",
    "元素({element})开始执行({action})流程",
    "Element({element}) start to Action({action}).",
    NORMAL,
)
SUCCESSFUL_FINISH = Reason(
    "执行成功##SuccessfulFinish",
    "元素({element})执行{action}成功",
    "Element({element}) execute Action: {action} successfully",
    NORMAL,
)
ACTION_RETRY = Reason(
    "重试##ActionRetry",
    "元素({element})重试{action}",
    "Element({element}) retry Action: {action}",
    WARNING,
)
ACTION_FAILED = Reason(
    "执行失败##ActionFailed",
    "元素({element})执行{action}失败",
    "Element({element}) execute Action: {action} failed",
    WARNING,
)
ACTION_TIMEOUT = Reason(
    "执行超时##ActionTimeout",
    "元素({element})执行{action}超时",
    "Element({element}) execute Action: {action} timed out",
    WARNING,
)
# A cancellation is intended, so it is no warning.
ACTION_CANCELLED = Reason(
    "取消##ActionCancelled",
    "元素({element})取消执行{action}",
    "Element({element}) execute Action: {action} cancelled",
    NORMAL,
)
CATALOGUE = (
    ACTION_START,
    SUCCESSFUL_FINISH,
    ACTION_RETRY,
    ACTION_FAILED,
    ACTION_TIMEOUT,
    ACTION_CANCELLED,
)


def describe(error: BaseException) -> str:
    """Return the type and text of `error`, and of a group's members, on one printable line.

    Addresses of objects are left out, so that equal errors of two processes have equal texts. Has
    at most as many characters as a message may have bytes. Never raises.
    """
    try:
        text = str(error)
        if isinstance(error, BaseExceptionGroup):
            text += ": " + "; ".join(map(describe, error.exceptions))
    except Exception:  # __str__ of a foreign exception can fail
        text = ""
    line = f"{type(error).__name__}: {text[:MESSAGE_MAX_BYTES]}"
    line = _without_separators(_CONTROLS.sub(" ", _ADDRESS.sub("", line)))
    return line.strip().removesuffix(":")[:MESSAGE_MAX_BYTES]


def _without_separators(text: str) -> str:
    """Return `text` without a separator, which would end the first half."""
    return re.sub("##+", "#", text)
