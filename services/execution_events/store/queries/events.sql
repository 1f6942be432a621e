-- name: create_batch_event
-- Filled by COPY, which is much faster than parameters. Lives as long as the connection.
CREATE TEMPORARY TABLE IF NOT EXISTS batch_event (
    LIKE execution_events.event
) ON COMMIT DELETE ROWS

-- name: upsert_executions
-- Before the events: every writer locks progress, then executions, then events. The revision
-- never repeats, not even after a prune or a restore, because it is at least the time.
INSERT INTO execution (
    execution_id, namespace, revision, events, occurrences,
    first_timestamp, last_timestamp, created_at, changed_at
)
SELECT
    execution_id,
    namespace,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    0,
    least(sum(count), 9007199254740991),
    min(first_timestamp),
    max(last_timestamp),
    now(),
    now()
FROM batch_event
GROUP BY execution_id, namespace
ORDER BY execution_id, namespace
ON CONFLICT (execution_id, namespace) DO UPDATE SET
    revision = greatest(execution.revision + 1, excluded.revision),
    occurrences = least(execution.occurrences + excluded.occurrences, 9007199254740991),
    first_timestamp = least(execution.first_timestamp, excluded.first_timestamp),
    last_timestamp = greatest(execution.last_timestamp, excluded.last_timestamp),
    changed_at = excluded.changed_at

-- name: upsert_events
-- The fold of design section 3 in SQL. `place` is the first record's, so it is not updated.
WITH folded AS (
    INSERT INTO event (
        execution_id, namespace, name, object_name, object_namespace, reason, message, place,
        first_timestamp, last_timestamp, count, type, elem_type, elem_id, action_name
    )
    SELECT
        execution_id, namespace, name, object_name, object_namespace, reason, message, place,
        first_timestamp, last_timestamp, count, type, elem_type, elem_id, action_name
    FROM batch_event
    ORDER BY execution_id, namespace, name
    ON CONFLICT (execution_id, namespace, name) DO UPDATE SET
        object_name = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.object_name ELSE event.object_name END,
        object_namespace = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.object_namespace ELSE event.object_namespace END,
        reason = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.reason ELSE event.reason END,
        message = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.message ELSE event.message END,
        type = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.type ELSE event.type END,
        elem_type = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.elem_type ELSE event.elem_type END,
        elem_id = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.elem_id ELSE event.elem_id END,
        action_name = CASE WHEN excluded.last_timestamp >= event.last_timestamp
            THEN excluded.action_name ELSE event.action_name END,
        first_timestamp = least(event.first_timestamp, excluded.first_timestamp),
        last_timestamp = greatest(event.last_timestamp, excluded.last_timestamp),
        count = least(event.count + excluded.count, 9007199254740991)
    RETURNING event.execution_id, event.namespace, old.name IS NULL AS is_new
),
growth AS (
    SELECT execution_id, namespace, count(*) AS events
    FROM folded
    WHERE is_new
    GROUP BY execution_id, namespace
)
UPDATE execution
SET events = execution.events + growth.events
FROM growth
WHERE execution.execution_id = growth.execution_id AND execution.namespace = growth.namespace
