"""The fingerprint of a failure, by which equal failures of different elements group."""

import re
from hashlib import sha256

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]+")
_NUMBER = re.compile(r"[0-9]{4,}")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
"""Characters of a word; not those of Chinese, which has no spaces between words."""
_PLACEHOLDER = "<>"


def failure_fingerprint(
    reason_code: str,
    message: str,
    *,
    execution_id: str,
    object_name: str,
    elem_type: str,
    elem_id: str,
) -> str:
    """Return 16 hex digits of a hash over `elem_type`, `reason_code` and the text of `message`.

    In the text, the identifiers of execution, object and element as whole words, UUIDs,
    hexadecimal numbers with `0x`, and runs of four or more digits are replaced by a placeholder,
    in this order, longer identifiers first.
    """
    text = message
    for identifier in sorted((execution_id, object_name, elem_id), key=len, reverse=True):
        text = _without(identifier, text)
    for pattern in (_UUID, _HEXADECIMAL, _NUMBER):
        text = pattern.sub(_PLACEHOLDER, text)
    return sha256("\0".join((elem_type, reason_code, text)).encode()).digest()[:8].hex()


def _without(identifier: str, text: str) -> str:
    """Return `text` with a placeholder for each `identifier` that is a whole word.

    A regular expression would have to be compiled for each identifier.
    """
    begin = text.find(identifier)
    if begin < 0:
        return text
    parts: list[str] = []
    copied = 0
    while begin >= 0:
        end = begin + len(identifier)
        if text[begin - 1 : begin] in _WORD or text[end : end + 1] in _WORD:
            begin = text.find(identifier, begin + 1)
            continue
        parts += text[copied:begin], _PLACEHOLDER
        copied = end
        begin = text.find(identifier, end)
    return "".join(parts) + text[copied:]
