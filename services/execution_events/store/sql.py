"""SQL statements from files: `queries/*.sql` hold blocks that begin with `-- name: <name>`."""

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_ARGUMENT = re.compile(r"\$([a-z_]+)")


def load_queries(file: str) -> dict[str, str]:
    """Return the statements of `queries/<file>.sql` by name."""
    text = (files(__package__) / "queries" / f"{file}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def array_literal(texts: Iterable[str]) -> str:
    """Return PostgreSQL's literal of an array of `texts`, for `$1::text::text[]`.

    asyncpg encodes an array of many texts several times as slowly. A text has no NUL.
    """
    joined = "\0".join(texts).replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return f'{{"{joined}"}}'


@lru_cache(maxsize=256)
def number_arguments(statement: str) -> tuple[str, tuple[str, ...]]:
    """Replace `$name` by `$1`, `$2`, …; return the statement and the names in that order."""
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"${numbers.setdefault(match[1], len(numbers) + 1)}"

    return _ARGUMENT.sub(numbered, statement), tuple(numbers)
