"""Preferences in a request's Accept headers (RFC 9110, 12.4)."""

import re
from collections.abc import Iterator

_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


def preferences(header: str) -> Iterator[tuple[str, float]]:
    """The members of an Accept header with their quality; malformed ones are left out."""
    for member in header.split(","):
        name, *parameters = (part.strip().lower() for part in member.split(";"))
        quality = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = value.strip()
        if name and _QUALITY.fullmatch(quality):
            yield name, float(quality)
