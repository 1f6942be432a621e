"""Tokens of three callers, and a token file with them."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from execution_events.web.auth.access import Caller

TENANTS: Mapping[str, Sequence[str]] = {
    "t0ken-of-one": ["one"],
    "t0ken-of-two": ["two"],
    "t0ken-of-none": [],
}
ONE, TWO, NONE = ({"X-Auth-Token": token} for token in TENANTS)


def token_file(tenants: Mapping[str, Sequence[str]] = TENANTS) -> str:
    """Return the content of a token file: hashes and namespaces."""
    return json.dumps({hashed(token): names for token, names in tenants.items()})


def hashed(token: str) -> str:
    """Return the key of a token in the file."""
    return hashlib.sha256(token.encode()).hexdigest()


def readable(caller: Caller | None) -> set[str]:
    """Return the namespaces of a caller that may not read all."""
    assert caller is not None
    assert caller.namespaces is not None
    return set(caller.namespaces)
