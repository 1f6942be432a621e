"""Tokens of three callers, and a token file with them."""

import hashlib
import json
from collections.abc import Mapping, Sequence

TENANTS: Mapping[str, Sequence[str]] = {
    "t0ken-of-one": ["one"],
    "t0ken-of-two": ["two"],
    "t0ken-of-none": [],
}
ONE, TWO, NONE = ({"X-Auth-Token": token} for token in TENANTS)


def token_file(tenants: Mapping[str, Sequence[str]] = TENANTS) -> str:
    """Return the content of a token file: hashes and namespaces."""
    return json.dumps({hashlib.sha256(k.encode()).hexdigest(): v for k, v in tenants.items()})
