"""Named queries: each `queries/*.sql` holds blocks that begin with `-- name: <name>`."""

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(file: str) -> dict[str, str]:
    """The queries of `queries/<file>.sql` by name."""
    text = (files(__package__) / "queries" / f"{file}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
