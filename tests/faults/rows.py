"""The fault matrix: every row, in the order of the report."""

from tests.faults import (
    rows_accept,
    rows_clock,
    rows_consumer,
    rows_corrupt,
    rows_failover,
    rows_frozen,
    rows_kafka,
    rows_log,
    rows_memory,
    rows_network,
    rows_postgres,
    rows_spool,
    rows_transactions,
    rows_zombie,
)
from tests.faults.episode import Row

# Rows with one broker come first, so that each cluster is started once.
ROWS: tuple[Row, ...] = (
    *rows_consumer.ROWS,
    *rows_zombie.ROWS,
    *rows_postgres.ROWS,
    *rows_kafka.ROWS,
    *rows_transactions.ROWS,
    *rows_log.ROWS,
    *rows_corrupt.ROWS,
    *rows_frozen.ROWS,
    *rows_failover.ROWS,
    *rows_accept.ROWS,
    *rows_memory.ROWS,
    *rows_clock.ROWS,
    *rows_spool.ROWS,
    *rows_kafka.ROWS_OF_THREE,
    *rows_corrupt.ROWS_OF_THREE,
    *rows_network.ROWS_OF_THREE,
)


def row(name: str) -> Row:
    """Return the row `name`; raise KeyError if there is none."""
    return {row.name: row for row in ROWS}[name]
