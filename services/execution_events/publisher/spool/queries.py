"""The SQL of a spool file: schema, summary, and the statements of each operation.

`:horizon` is a time in milliseconds: records first attempted before it are held.
"""

# ruff: noqa: S608

SCHEMA_VERSION = 1
ROW_BYTES = 32
"""Approximate size of a row without its contents."""

PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    # On macOS fsync alone leaves data in the cache of the drive.
    "fullfsync = ON",
    "checkpoint_fullfsync = ON",
    "wal_autocheckpoint = 1000",
    "secure_delete = OFF",
)

# Separate, because older files of the same version lack this table: it may be added to them.
BLOCKED_TABLE = """
CREATE TABLE IF NOT EXISTS blocked_partition (
    -- -1: all partitions.
    partition INTEGER PRIMARY KEY,
    -- The error of its last attempt, as far as it is known.
    error TEXT NOT NULL
)
"""
SCHEMA = f"""
BEGIN;
CREATE TABLE spool (source TEXT NOT NULL);
CREATE TABLE record (
    -- ce_sequence. AUTOINCREMENT: the number of a deleted record is never used again.
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Both NULL until the record is fetched for the first time, and constant afterwards.
    partition INTEGER,
    attempted_at INTEGER,
    -- The reason for which Kafka will never accept the record; NULL for all others.
    refused TEXT,
    -- CRC-32 of key and value: SQLite does not detect changes of their bytes.
    checksum INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    traceparent TEXT,
    timestamp INTEGER NOT NULL
);
{BLOCKED_TABLE};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
INSERT_SOURCE = "INSERT INTO spool VALUES (?)"

# Summary.

_HELD = "refused IS NULL AND attempted_at < :horizon"
_PENDING = "refused IS NULL AND (attempted_at IS NULL OR attempted_at >= :horizon)"
SOURCE = "SELECT source FROM spool"
SUMMARY = f"""
SELECT COUNT(*) FILTER (WHERE {_PENDING}) AS pending,
       COUNT(*) FILTER (WHERE {_HELD}) AS held,
       COUNT(refused) AS refused,
       COALESCE(SUM(LENGTH(key) + LENGTH(value) + COALESCE(LENGTH(traceparent), 0)
                    + {ROW_BYTES}), 0) AS bytes,
       MIN(timestamp) AS oldest
FROM record
"""
ANY_PENDING = f"SELECT EXISTS (SELECT 1 FROM record WHERE {_PENDING})"
HAS_BLOCKED_TABLE = "SELECT 1 FROM sqlite_master WHERE name = 'blocked_partition'"
BLOCKED = "SELECT partition, error FROM blocked_partition ORDER BY partition"
LAST_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'record'"

# Commit.

INSERT = """
INSERT INTO record
    (sequence, partition, attempted_at, checksum, key, value, traceparent, timestamp)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
FETCH = f"""
SELECT checksum, sequence, partition, attempted_at, key, value, traceparent, timestamp
FROM record WHERE sequence > :position AND {_PENDING}
  AND (partition IS NULL OR partition NOT IN ({{blocked}}))
ORDER BY sequence LIMIT :limit
"""
ASSIGN = "UPDATE record SET partition = ?, attempted_at = ? WHERE sequence = ?"
DELETE = "DELETE FROM record WHERE sequence = ?"
REFUSE = "UPDATE record SET refused = ? WHERE sequence = ?"
DELETE_BLOCKED = "DELETE FROM blocked_partition"
INSERT_BLOCKED = "INSERT INTO blocked_partition VALUES (?, ?)"

# Hold. A held record has attempted_at = 0, so that it stays held when the clock is set back: later
# records may have been sent meanwhile, and its sequence is then at or below the watermark.

OLD = (
    "SELECT sequence FROM record WHERE refused IS NULL AND attempted_at < :horizon AND attempted_at"
)
HOLD = "UPDATE record SET attempted_at = 0 WHERE sequence = ?"
HOLD_OLD = f"UPDATE record SET attempted_at = 0 WHERE attempted_at AND {_HELD}"
OLDEST_ATTEMPT = f"SELECT MIN(attempted_at) FROM record WHERE {_PENDING}"

# Renewal: records get new sequences at the end, `:limit` in one transaction.

HELD_OR_REFUSED = f"(refused IS NOT NULL OR {_HELD})"
HELD_OR_REFUSED_UP_TO = f"""
SELECT COUNT(*), COUNT(refused), MAX(sequence)
FROM (SELECT sequence, refused FROM record WHERE {HELD_OR_REFUSED} ORDER BY sequence LIMIT :limit)
"""
STRANDED = f"{_PENDING} AND partition >= :partitions"
STRANDED_UP_TO = f"""
SELECT COUNT(*), MAX(sequence)
FROM (SELECT sequence FROM record WHERE {STRANDED} ORDER BY sequence LIMIT :limit)
"""
RENEW_COPY = """
INSERT INTO record (checksum, key, value, traceparent, timestamp)
SELECT checksum, key, value, traceparent, timestamp
FROM record WHERE {condition} AND sequence <= :up_to ORDER BY sequence
"""
RENEW_DELETE = "DELETE FROM record WHERE {condition} AND sequence <= :up_to"
