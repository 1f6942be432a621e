"""Statements from files, with named arguments."""

from execution_events.store.sql import load_queries, number_arguments


def test_queries_are_loaded_by_name() -> None:
    queries = load_queries("prune")
    assert queries["time_before"] == "SELECT now() - $1::interval"
    assert all(not text.startswith("-- name:") for text in queries.values())


def test_arguments_are_numbered_in_order_of_appearance() -> None:
    statement = "SELECT $limit, $name WHERE a = $name AND b = $limit::bigint AND c = $only_reason"
    assert number_arguments(statement) == (
        "SELECT $1, $2 WHERE a = $2 AND b = $1::bigint AND c = $3",
        ("limit", "name", "only_reason"),
    )


def test_a_statement_without_names_is_unchanged() -> None:
    assert number_arguments("SELECT $1") == ("SELECT $1", ())
