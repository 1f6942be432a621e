-- name: current_revisions
-- Revisions by namespace for many callers; `ordinal` is the index in the arrays, from 1, and has no
-- row if the caller may read nothing. `scope` numbers a set of namespaces; null is all namespaces.
-- Each execution is one search of the primary key.
SELECT ordinal, jsonb_object_agg(namespace, revision)::text AS revisions
FROM unnest($1::text[], $2::integer[]) WITH ORDINALITY AS wanted (execution_id, scope, ordinal)
JOIN execution_events.execution USING (execution_id)
WHERE scope IS NULL
    OR (scope, namespace) IN (
        SELECT scope, namespace FROM unnest($3::integer[], $4::text[]) AS scopes (scope, namespace)
    )
GROUP BY ordinal

-- name: changes
-- The events changed after a known revision, 0 for an absent execution; `ordinal` is the index in the
-- arrays, from 1. One statement, so that the events are in their state at `latest`. There are no rows
-- if the changes are incomplete, as every revision names the previous one, or exceed the limit.
WITH since AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::bigint[])
        WITH ORDINALITY AS since (execution_id, namespace, known, ordinal)
),
change AS (
    SELECT ordinal, execution_id, namespace, known, change.revision, previous, names, rewritten
    FROM since
    JOIN execution_events.execution_change AS change USING (execution_id, namespace)
    WHERE change.revision > known
),
chain AS (
    SELECT ordinal, max(revision) AS latest
    FROM change
    GROUP BY ordinal
    HAVING coalesce((array_agg(previous ORDER BY revision))[1], 0) = min(known)
        AND sum(cardinality(names)) <= $4
),
changed AS (
    SELECT
        ordinal, latest, execution_id, namespace, name,
        max(revision) AS revision,
        -- The array of a transaction that rewrote no event is empty.
        coalesce(bool_or(is_rewritten), false) AS is_rewritten
    FROM change
    JOIN chain USING (ordinal)
    CROSS JOIN unnest(names, rewritten) AS event (name, is_rewritten)
    GROUP BY ordinal, latest, execution_id, namespace, name
)
SELECT ordinal, latest, revision, is_rewritten, first_timestamp, last_timestamp, body
FROM changed
JOIN execution_events.event USING (execution_id, namespace, name)
ORDER BY ordinal, revision, list_position, name
