-- name: time_before
SELECT now() - $1::interval

-- name: execution_page
-- By ranges of the primary key: an index on `changed_at` would prevent HOT updates.
SELECT execution_id, namespace, events, changed_at < $3 AS is_old
FROM execution_events.execution
WHERE (execution_id, namespace) > ($1, $2)
ORDER BY execution_id, namespace
LIMIT $4

-- name: lock_old_executions
-- In the order of all writers, which lock an execution before its events: no other transaction
-- changes these until this one ends. A locked execution is being changed, so it is skipped.
SELECT execution_id, namespace
FROM execution_events.execution
JOIN unnest($1::text[], $2::text[]) AS wanted (execution_id, namespace)
    USING (execution_id, namespace)
WHERE changed_at < $3
ORDER BY execution_id, namespace
FOR UPDATE OF execution SKIP LOCKED

-- name: delete_events
-- A separate statement after the lock, so that its snapshot includes all events.
WITH gone AS (
    DELETE FROM execution_events.event
    USING unnest($1::text[], $2::text[]) AS locked (execution_id, namespace)
    WHERE event.execution_id = locked.execution_id AND event.namespace = locked.namespace
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: delete_actions
DELETE FROM execution_events.action
USING unnest($1::text[], $2::text[]) AS locked (execution_id, namespace)
WHERE action.execution_id = locked.execution_id AND action.namespace = locked.namespace

-- name: delete_changes
DELETE FROM execution_events.execution_change
USING unnest($1::text[], $2::text[]) AS locked (execution_id, namespace)
WHERE execution_change.execution_id = locked.execution_id
    AND execution_change.namespace = locked.namespace

-- name: delete_executions
DELETE FROM execution_events.execution
USING unnest($1::text[], $2::text[]) AS locked (execution_id, namespace)
WHERE execution.execution_id = locked.execution_id AND execution.namespace = locked.namespace

-- name: count_idle_sources
SELECT count(*) FROM execution_events.producer_progress WHERE changed_at < $1

-- name: delete_idle_sources
WITH idle AS (
    SELECT topic, partition, source_hash
    FROM execution_events.producer_progress
    WHERE changed_at < $1
    LIMIT $2
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM execution_events.producer_progress AS progress
    USING idle
    WHERE progress.topic = idle.topic
        AND progress.partition = idle.partition
        AND progress.source_hash = idle.source_hash
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: count_closed_dead_letters
SELECT count(*) FROM execution_events.dead_letter WHERE coalesce(retried_at, discarded_at) < $1

-- name: delete_closed_dead_letters
WITH closed AS (
    SELECT id
    FROM execution_events.dead_letter
    WHERE coalesce(retried_at, discarded_at) < $1
    LIMIT $2
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM execution_events.dead_letter USING closed WHERE dead_letter.id = closed.id RETURNING 1
)
SELECT count(*) FROM gone
