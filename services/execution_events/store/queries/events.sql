-- name: raise_executions
-- Every writer locks progress, then executions, then events, so after this statement the events of
-- these executions change in no other transaction. A revision is at least the current time, so it
-- never repeats, not even after a prune or a restore.
INSERT INTO execution_events.execution (
    execution_id, namespace, object_name, revision, events, occurrences,
    first_timestamp, last_timestamp, created_at, changed_at,
    elements, running, succeeded, failed, timed_out, cancelled, warnings
)
SELECT
    execution_id,
    namespace,
    object_name,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    0,
    occurrences,
    first_timestamp,
    last_timestamp,
    now(),
    now(),
    0, 0, 0, 0, 0, 0, 0
FROM unnest(
    $1::text::text[], $2::text::text[], $3::text::text[],
    $4::bigint[], $5::timestamptz[], $6::timestamptz[]
) AS raised (execution_id, namespace, object_name, occurrences, first_timestamp, last_timestamp)
ORDER BY execution_id COLLATE "C", namespace COLLATE "C"
ON CONFLICT (execution_id, namespace) DO UPDATE SET
    revision = greatest(execution.revision + 1, excluded.revision),
    previous_revision = execution.revision,
    occurrences = least(execution.occurrences + excluded.occurrences, 9007199254740991),
    first_timestamp = least(execution.first_timestamp, excluded.first_timestamp),
    last_timestamp = greatest(execution.last_timestamp, excluded.last_timestamp),
    changed_at = excluded.changed_at,
    -- Unchanged. `state` is generated from it: in an update without such a column, PostgreSQL would
    -- parse the expression again for each row.
    failed = execution.failed
RETURNING execution_id, namespace, revision, previous_revision

-- name: stored_events
-- `ordinal` is the index in the arrays, from 1.
SELECT ordinal, list_position, first_timestamp, last_timestamp, count, body
FROM unnest($1::text::text[], $2::text::text[], $3::text::text[])
    WITH ORDINALITY AS wanted (execution_id, namespace, name, ordinal)
JOIN execution_events.event USING (execution_id, namespace, name)

-- name: change_events
-- A recurrence changes nothing else.
UPDATE execution_events.event
SET first_timestamp = changed.first_timestamp,
    last_timestamp = changed.last_timestamp,
    count = changed.count,
    body = changed.body
FROM unnest(
    $1::text::text[], $2::text::text[], $3::text::text[],
    $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::bytea[]
) AS changed (execution_id, namespace, name, first_timestamp, last_timestamp, count, body)
WHERE event.execution_id = changed.execution_id
    AND event.namespace = changed.namespace
    AND event.name = changed.name

-- name: rewrite_events
-- The identity and the list position never change.
UPDATE execution_events.event
SET object_name = changed.object_name,
    reason = changed.reason,
    type = changed.type,
    elem_type = changed.elem_type,
    elem_id = changed.elem_id,
    action_name = changed.action_name,
    element_hash = changed.element_hash
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::bigint[]
) AS changed (
    execution_id, namespace, name, object_name, reason, type, elem_type, elem_id, action_name,
    element_hash
)
WHERE event.execution_id = changed.execution_id
    AND event.namespace = changed.namespace
    AND event.name = changed.name

-- name: insert_changes
-- Names and flags are literals of arrays.
INSERT INTO execution_events.execution_change (
    execution_id, namespace, revision, previous, names, rewritten
)
SELECT execution_id, namespace, revision, previous, names::text[], rewritten::boolean[]
FROM unnest(
    $1::text::text[], $2::text::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[]
) AS changed (execution_id, namespace, revision, previous, names, rewritten)

-- name: purge_changes
-- In order of age, so that concurrent sessions take their locks in one order.
WITH forgotten AS (
    DELETE FROM execution_events.execution_change
    WHERE ctid = ANY (ARRAY(
        SELECT ctid
        FROM execution_events.execution_change
        WHERE revision < (extract(epoch FROM now() - $1::interval) * 1000000)::bigint
        ORDER BY revision
        LIMIT $2
    ))
    RETURNING 1
)
SELECT count(*) FROM forgotten
