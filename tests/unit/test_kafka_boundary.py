"""Only `kafka/` depends on the internals of aiokafka."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "services" / "execution_events"
PUBLIC = (
    "aiokafka",
    "aiokafka.abc",
    "aiokafka.admin",
    "aiokafka.coordinator.assignors",
    "aiokafka.errors",
    "aiokafka.helpers",
    "aiokafka.partitioner",
    "aiokafka.structs",
)
"""Modules that aiokafka documents."""
NAMED_TUPLE = ("_asdict", "_fields", "_make", "_replace")
OWN = ("self", "cls")


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each imported module and, for `from` imports, the name taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_public(module: str) -> bool:
    assignors = "aiokafka.coordinator.assignors."
    return module in PUBLIC or module.startswith(assignors)


def internals(source: str) -> list[str]:
    """Return the internals of aiokafka that a module uses, as far as its syntax shows."""
    tree = ast.parse(source)
    imports = list(imported(tree))
    found = [
        f"{module}.{name}".rstrip(".")
        for module, name in imports
        if module.split(".")[0] == "aiokafka" and (not is_public(module) or name.startswith("_"))
    ]
    if not any(m.startswith(("aiokafka", "execution_events.kafka")) for m, _ in imports):
        return found
    # Such a module can hold clients of aiokafka; it has no reason to touch any private attribute
    # but its own.
    return found + [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and node.attr not in NAMED_TUPLE
        and not (isinstance(node.value, ast.Name) and node.value.id in OWN)
    ]


def test_no_module_outside_kafka_uses_internals_of_aiokafka() -> None:
    modules = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE / "kafka"]
    assert len(modules) > 50
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in modules
        if (names := internals(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import aiokafka.conn", ["aiokafka.conn"]),
        ("from aiokafka.consumer.fetcher import FetchResult", ["aiokafka.consumer.fetcher"]),
        ("from aiokafka import TopicPartition\nclient._client.close()", ["client._client"]),
        ("from execution_events.kafka.consumer import X\nself.client._y", ["self.client._y"]),
        ("from aiokafka.errors import KafkaError\nself._client.seek(p, 0)", []),
        ("from aiokafka.coordinator.assignors.roundrobin import X\nstate._replace(a=1)", []),
        ("import asyncpg\nconnection._x", []),
    ],
)
def test_internals_are_found(source: str, expected: list[str]) -> None:
    found = internals(source)
    assert len(found) == len(expected)
    assert all(name.startswith(text) for name, text in zip(found, expected, strict=True))
