-- name: stored_positions
SELECT partition, epoch, next_offset, cluster_id, last_offset, last_timestamp, last_hash
FROM execution_events.partition_progress
WHERE topic = $1 AND partition = ANY ($2::integer[])

-- name: begin_partition
-- Without effect if the partition has a stored offset.
INSERT INTO execution_events.partition_progress (topic, partition, next_offset, cluster_id, changed_at)
VALUES ($1, $2, $3, $4, now())
ON CONFLICT (topic, partition) DO NOTHING

-- name: accept_log
UPDATE execution_events.partition_progress
SET epoch = epoch + 1, next_offset = $5, cluster_id = $6, last_offset = NULL,
    last_timestamp = NULL, last_hash = NULL, changed_at = now()
WHERE topic = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4
RETURNING partition

-- name: move_offsets
-- Compare and set: a partition is `moved` if its stored epoch and offset are the expected ones. A row
-- locked by another session is skipped, as that session may be frozen; all sessions lock in one order.
-- A partition that moves without a record keeps the fingerprint of its last record. The statement also
-- reads the schema's `compatible_from`: no batch is stored after a migration that excludes this version.
WITH move AS (
    SELECT * FROM unnest(
        $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::bytea[]
    ) AS move (partition, epoch, expected, next, last_offset, last_timestamp, last_hash)
),
locked AS (
    SELECT partition FROM execution_events.partition_progress
    WHERE topic = $1 AND partition = ANY ($2::integer[])
    ORDER BY partition
    FOR UPDATE SKIP LOCKED
),
moved AS (
    UPDATE execution_events.partition_progress AS progress
    SET next_offset = move.next,
        last_offset = coalesce(move.last_offset, progress.last_offset),
        last_timestamp = coalesce(move.last_timestamp, progress.last_timestamp),
        last_hash = coalesce(move.last_hash, progress.last_hash),
        changed_at = now()
    FROM move JOIN locked USING (partition)
    WHERE progress.topic = $1
        AND progress.partition = move.partition
        AND progress.epoch = move.epoch
        AND progress.next_offset = move.expected
    RETURNING progress.partition
)
SELECT
    locked.partition,
    moved.partition IS NOT NULL AS moved,
    (SELECT compatible_from FROM execution_events.schema_version ORDER BY version DESC LIMIT 1) AS compatible_from
FROM locked LEFT JOIN moved USING (partition)

-- name: locked_partitions
-- Partitions whose rows are locked by other sessions.
WITH free AS (
    SELECT partition FROM execution_events.partition_progress
    WHERE topic = $1 AND partition = ANY ($2::integer[])
    ORDER BY partition
    FOR UPDATE SKIP LOCKED
)
SELECT partition FROM execution_events.partition_progress
WHERE topic = $1 AND partition = ANY ($2::integer[])
    AND partition NOT IN (SELECT partition FROM free)

-- name: end_lock_holders
-- A row's xmax is the transaction that locks it, and each transaction holds a lock on its own id.
-- Only sessions of the same role and application are ended. Materialized, so that all conditions
-- are checked before the first session is ended.
WITH holder AS MATERIALIZED (
    SELECT DISTINCT activity.pid
    FROM execution_events.partition_progress AS progress
    JOIN pg_locks AS held
        ON held.locktype = 'transactionid'
        AND held.transactionid = progress.xmax
        AND held.mode = 'ExclusiveLock'
        AND held.granted
    JOIN pg_stat_activity AS activity ON activity.pid = held.pid
    WHERE progress.topic = $1
        AND progress.partition = ANY ($2::integer[])
        AND activity.usename = session_user
        AND activity.application_name = $3
        AND activity.pid <> pg_backend_pid()
)
SELECT pid FROM holder WHERE pg_terminate_backend(pid)

-- name: watermarks
SELECT progress.partition, source, sequence
FROM execution_events.producer_progress AS progress
JOIN unnest($2::integer[], $3::bytea[]) AS wanted (partition, source_hash)
    USING (partition, source_hash)
WHERE topic = $1

-- name: move_watermarks
INSERT INTO execution_events.producer_progress (topic, partition, source, source_hash, sequence, changed_at)
SELECT $1, partition, source, source_hash, sequence, now()
FROM unnest($2::integer[], $3::text[], $4::bytea[], $5::bigint[])
    AS moved (partition, source, source_hash, sequence)
ORDER BY partition, source_hash
ON CONFLICT (topic, partition, source_hash)
    DO UPDATE SET sequence = excluded.sequence, changed_at = excluded.changed_at
