-- name: current_revisions
-- By namespace, for many who ask at once; `number` is the place in the arrays, from 1, and who has
-- no row there may read nothing. A scope is a set of namespaces that one of them may read, and null
-- is all. Each is one search of the primary key.
SELECT number, jsonb_object_agg(namespace, revision)::text AS revisions
FROM unnest($1::text[], $2::integer[]) WITH ORDINALITY AS asked (execution_id, scope, number)
JOIN execution USING (execution_id)
WHERE scope IS NULL
    OR (scope, namespace) IN (
        SELECT scope, namespace FROM unnest($3::integer[], $4::text[]) AS scopes (scope, namespace)
    )
GROUP BY number

-- name: changes
-- One statement, so that the events are as they were at the revision that it finds: of each
-- execution (`number` is the place in the arrays, from 1), what changed after a revision, zero for
-- one that was not there. Where nothing is found, not all of it is known: every revision names the
-- one before it, and one of them was forgotten; or it is too much.
WITH since AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::bigint[])
        WITH ORDINALITY AS since (execution_id, namespace, known, number)
),
change AS (
    SELECT number, execution_id, namespace, known, change.revision, previous, names, rewritten
    FROM since
    JOIN execution_change AS change USING (execution_id, namespace)
    WHERE change.revision > known
),
chain AS (
    SELECT number, max(revision) AS latest
    FROM change
    GROUP BY number
    HAVING coalesce((array_agg(previous ORDER BY revision))[1], 0) = min(known)
        AND sum(cardinality(names)) <= $4
),
changed AS (
    SELECT
        number, latest, execution_id, namespace, name,
        max(revision) AS revision,
        -- Where none of a transaction's is, the array is empty.
        coalesce(bool_or(is_rewritten), false) AS is_rewritten
    FROM change
    JOIN chain USING (number)
    CROSS JOIN unnest(names, rewritten) AS event (name, is_rewritten)
    GROUP BY number, latest, execution_id, namespace, name
)
SELECT number, latest, revision, is_rewritten, first_timestamp, last_timestamp, body
FROM changed
JOIN event USING (execution_id, namespace, name)
ORDER BY number, revision, place, name
