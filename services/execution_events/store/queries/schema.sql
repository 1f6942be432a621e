-- name: schema_version_state
-- `is_released`: the table has the columns of a released version.
SELECT
    to_regclass('execution_events.schema_version') IS NOT NULL AS exists,
    EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('execution_events.schema_version')
            AND attname = 'compatible_from'
    ) AS is_released

-- name: create_schema_version
CREATE SCHEMA IF NOT EXISTS execution_events;
CREATE TABLE IF NOT EXISTS execution_events.schema_version (
    version         integer PRIMARY KEY,
    name            text COLLATE "C" NOT NULL,
    digest          text COLLATE "C" NOT NULL,
    compatible_from text COLLATE "C" NOT NULL,
    applied_at      timestamptz NOT NULL DEFAULT now()
)

-- name: applied_migrations
SELECT version, digest, compatible_from
FROM execution_events.schema_version
ORDER BY version

-- name: lock_schema_version
-- One migration at a time; services still read the table.
SET LOCAL search_path = execution_events;
SET LOCAL lock_timeout = '2s';
LOCK TABLE schema_version IN SHARE ROW EXCLUSIVE MODE

-- name: lock_batches
-- No batch is in progress, and each later one sees the new version.
LOCK TABLE partition_progress IN EXCLUSIVE MODE

-- name: insert_schema_version
INSERT INTO schema_version (version, name, digest, compatible_from)
VALUES ($1, $2, $3, $4)
