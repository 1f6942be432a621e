-- Parts of statements, joined by `store/read/events.py`: {…} is another part or a column's name, $name
-- an argument. A caller's input is always an argument.

-- name: revisions
-- Revisions by namespace of the execution rows that the caller may read; null if there are none.
-- jsonb keeps its members in a fixed order.
SELECT jsonb_object_agg(namespace, revision)::text AS revisions
FROM execution_events.execution
WHERE {tenancy}

-- name: events
-- In order of creation, which never changes: the order of the index event_order. EXISTS comes first:
-- an execution of other tenants costs no more time than an absent one.
SELECT body, list_position
FROM execution_events.event
WHERE EXISTS (SELECT FROM execution_events.execution WHERE {tenancy})
    AND {conditions}
ORDER BY {order}

-- name: page
-- One statement, so that revisions and events are of one snapshot; one row, as each row costs the
-- reader more than its content. Aggregates take the rows of the subquery in its order.
SELECT revisions.revisions, page.bodies, page.list_position
FROM (
{revisions}
) AS revisions, (
SELECT
    array_agg(body) AS bodies,
    (array_agg(list_position))[$last::integer] AS list_position
FROM (
{events}
LIMIT $limit
) AS event
) AS page

-- name: execution
execution_id = $execution_id

-- name: namespaces
namespace = ANY ($namespaces)

-- name: ascending
list_position, name, namespace

-- name: descending
list_position DESC, name DESC, namespace DESC

-- name: after_ascending
(list_position, name, namespace) > ($list_position::text::timestamptz, $name, $namespace)

-- name: after_descending
(list_position, name, namespace) < ($list_position::text::timestamptz, $name, $namespace)

-- name: only
{column} = ANY ($only_{column})

-- name: except
{column} <> ALL ($except_{column})

-- name: only_reason
ARRAY[reason, execution_events.first_half(reason), execution_events.second_half(reason)] && $only_reason

-- name: except_reason
NOT ARRAY[reason, execution_events.first_half(reason), execution_events.second_half(reason)] && $except_reason

-- name: since
last_timestamp >= $since::text::timestamptz

-- name: until
first_timestamp < $until::text::timestamptz

-- name: text
-- In the collation "C" of both, lower() changes the letters A to Z alone.
(
    strpos(lower(execution_events.body_text(body, 'message') COLLATE "C"), lower($text::text COLLATE "C")) > 0
    OR strpos(lower(reason), lower($text::text COLLATE "C")) > 0
)
