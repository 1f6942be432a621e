"""Names of events, which decide what a recurrence is.

`schemas/golden/names.json` has examples, which producers in other languages compute too.
"""

from hashlib import sha256

from execution_events.events import NAME_MAX_BYTES

_DIGITS = 16
_OBJECT_MAX_BYTES = NAME_MAX_BYTES - len(".") - _DIGITS
# A character has four bytes at most.
_OBJECT_SHORT = _OBJECT_MAX_BYTES // 4


def event_name(
    *,
    execution_id: str,
    namespace: str,
    object_namespace: str,
    object_name: str,
    reason: str,
    message: str,
    type: str,  # noqa: A002
    elem_type: str,
    elem_id: str,
    action_name: str,
) -> str:
    """Return the name `<object>.<hash>`: the same for equal texts, in every process and language.

    The hash is the first 8 bytes, as hexadecimal digits, of SHA-256 over the texts in the order
    above, in UTF-8, joined by NUL, unchanged: no trimming and no Unicode normalisation. The object
    is cut between characters so that the name stays within its limit. The texts contain no NUL and
    no unpaired surrogate.
    """
    texts = (
        execution_id,
        namespace,
        object_namespace,
        object_name,
        reason,
        message,
        type,
        elem_type,
        elem_id,
        action_name,
    )
    digits = sha256("\0".join(texts).encode()).hexdigest()[:_DIGITS]
    if len(object_name) > _OBJECT_SHORT:
        object_name = object_name.encode()[:_OBJECT_MAX_BYTES].decode(errors="ignore")
    return f"{object_name}.{digits}"
