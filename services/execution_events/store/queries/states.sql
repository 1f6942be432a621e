-- name: stored_actions
-- The actions of elements, found by their events, so that one index serves both. A hash may be of
-- several elements, so the caller compares the whole key.
SELECT
    action.execution_id, action.namespace,
    action.object_name, action.elem_type, action.elem_id, action.action_name,
    last_seen, last_event, state, decided_at, decided_by,
    started, attempts, retries, warnings, failure, fingerprint
FROM (
    SELECT DISTINCT execution_id, namespace, object_name, elem_type, elem_id, action_name
    FROM execution_events.event
    WHERE element_hash = ANY ($1::text::bigint[])
) AS named
-- One search of the primary key for each.
JOIN execution_events.action
    ON action.execution_id = named.execution_id
    AND action.namespace = named.namespace
    AND action.action_key = substr(
        sha256(
            convert_to(named.object_name, 'UTF8') || '\x00'
            || convert_to(named.elem_type, 'UTF8') || '\x00'
            || convert_to(named.elem_id, 'UTF8') || '\x00'
            || convert_to(named.action_name, 'UTF8')
        ),
        1,
        16
    )

-- name: events_of_elements
-- The events of elements, as above.
SELECT execution_id, list_position, first_timestamp, last_timestamp, count, body
FROM execution_events.event
WHERE element_hash = ANY ($1::text::bigint[])

-- name: change_actions
UPDATE execution_events.action
SET last_seen = changed.last_seen,
    last_event = changed.last_event,
    state = changed.state,
    decided_at = changed.decided_at,
    decided_by = changed.decided_by,
    started = changed.started,
    attempts = changed.attempts,
    retries = changed.retries,
    warnings = changed.warnings,
    failure = changed.failure,
    fingerprint = changed.fingerprint
FROM unnest(
    $1::text::text[], $2::text::text[], $3::bytea[],
    $4::timestamptz[], $5::text::text[], $6::text::text[],
    $7::timestamptz[], $8::text[], $9::timestamptz[],
    $10::bigint[], $11::bigint[], $12::bigint[],
    $13::text[], $14::text[]
) AS changed (
    execution_id, namespace, action_key,
    last_seen, last_event, state,
    decided_at, decided_by, started,
    attempts, retries, warnings,
    failure, fingerprint
)
WHERE action.execution_id = changed.execution_id
    AND action.namespace = changed.namespace
    AND action.action_key = changed.action_key

-- name: delete_actions
DELETE FROM execution_events.action
USING unnest($1::text[], $2::text[], $3::bytea[]) AS gone (execution_id, namespace, action_key)
WHERE action.execution_id = gone.execution_id
    AND action.namespace = gone.namespace
    AND action.action_key = gone.action_key

-- name: change_counters
UPDATE execution_events.execution
SET events = execution.events + delta.events,
    elements = execution.elements + delta.elements,
    running = execution.running + delta.running,
    succeeded = execution.succeeded + delta.succeeded,
    failed = execution.failed + delta.failed,
    timed_out = execution.timed_out + delta.timed_out,
    cancelled = execution.cancelled + delta.cancelled,
    -- A sum that has reached the maximum is no longer the sum of what it holds.
    warnings = CASE
        WHEN execution.warnings = 9007199254740991 AND delta.warnings < 0 THEN (
            SELECT least(sum(action.warnings), 9007199254740991)
            FROM execution_events.action
            WHERE action.execution_id = execution.execution_id
                AND action.namespace = execution.namespace
        )
        ELSE least(execution.warnings + delta.warnings, 9007199254740991)
    END
FROM unnest(
    $1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::bigint[]
) AS delta (
    execution_id, namespace, events, elements, running, succeeded, failed,
    timed_out, cancelled, warnings
)
WHERE execution.execution_id = delta.execution_id AND execution.namespace = delta.namespace
