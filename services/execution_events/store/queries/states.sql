-- name: stored_actions
-- `ordinal` is the index in the arrays, from 1.
SELECT
    ordinal, last_seen, last_event, state, decided_at, decided_by,
    started, attempts, retries, warnings, failure, fingerprint
FROM unnest($1::text::text[], $2::text::text[], $3::text::bytea[])
    WITH ORDINALITY AS wanted (execution_id, namespace, action_key, ordinal)
JOIN execution_events.action USING (execution_id, namespace, action_key)

-- name: stored_elements
SELECT ordinal, running, succeeded, failed, timed_out, cancelled, unknown
FROM unnest($1::text::text[], $2::text::text[], $3::text::bytea[])
    WITH ORDINALITY AS wanted (execution_id, namespace, element_key, ordinal)
JOIN execution_events.element USING (execution_id, namespace, element_key)

-- name: events_of_actions
-- A hash may be of several actions, so the caller compares the whole key.
SELECT execution_id, list_position, first_timestamp, last_timestamp, count, body
FROM execution_events.event
WHERE action_hash = ANY ($1::bigint[])

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
    $execution_id::text[], $namespace::text[], $action_key::bytea[],
    $last_seen::timestamptz[], $last_event::text[], $state::text[],
    $decided_at::timestamptz[], $decided_by::text[], $started::timestamptz[],
    $attempts::bigint[], $retries::bigint[], $warnings::bigint[],
    $failure::text[], $fingerprint::text[]
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

-- name: change_elements
UPDATE execution_events.element
SET running = changed.running,
    succeeded = changed.succeeded,
    failed = changed.failed,
    timed_out = changed.timed_out,
    cancelled = changed.cancelled,
    unknown = changed.unknown
FROM unnest(
    $1::text[], $2::text[], $3::bytea[],
    $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::integer[], $9::integer[]
) AS changed (
    execution_id, namespace, element_key,
    running, succeeded, failed, timed_out, cancelled, unknown
)
WHERE element.execution_id = changed.execution_id
    AND element.namespace = changed.namespace
    AND element.element_key = changed.element_key

-- name: delete_elements
DELETE FROM execution_events.element
USING unnest($1::text[], $2::text[], $3::bytea[]) AS gone (execution_id, namespace, element_key)
WHERE element.execution_id = gone.execution_id
    AND element.namespace = gone.namespace
    AND element.element_key = gone.element_key

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
