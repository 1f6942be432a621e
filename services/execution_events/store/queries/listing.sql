-- name: events_of_execution
-- In order of creation, which never changes: see `place`.
SELECT
    name, namespace, object_name, object_namespace, reason, message,
    first_timestamp, last_timestamp, count, type, elem_type, elem_id, action_name
FROM event
WHERE execution_id = $1
ORDER BY place, name, namespace
