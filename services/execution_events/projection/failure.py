"""The fingerprint of a failure, by which equal failures of different elements group."""

import re
from hashlib import sha256

_VARIABLES = re.compile(
    r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|0[xX][0-9a-fA-F]+|[0-9]{4,}"
)
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
    hexadecimal numbers with `0x`, and runs of four or more digits are replaced by a placeholder.
    """
    text = message
    for identifier in sorted({execution_id, object_name, elem_id}, key=len, reverse=True):
        if identifier in text:
            text = re.sub(rf"(?<!\w){re.escape(identifier)}(?!\w)", _PLACEHOLDER, text, flags=re.A)
    text = _VARIABLES.sub(_PLACEHOLDER, text)
    return sha256("\0".join((elem_type, reason_code, text)).encode()).digest()[:8].hex()
