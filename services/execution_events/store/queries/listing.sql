-- Parts of statements. `store/read/events.py` joins them: {…} is another part or a column's name, $name
-- an argument. Nothing that a caller sent stands in a text.

-- name: revisions
-- Of every execution row that the caller may read, by namespace; null where there is none. The
-- order of jsonb's members is fixed.
SELECT jsonb_object_agg(namespace, revision)::text AS revisions
FROM execution
WHERE {tenancy}

-- name: events
-- In order of creation, which never changes: see `place`. The index event_order has this order.
-- EXISTS comes first: what is foreign costs no more time than what is absent.
SELECT body, place
FROM event
WHERE EXISTS (SELECT FROM execution WHERE {tenancy})
    AND {conditions}
ORDER BY {order}

-- name: page
-- One statement, so that revisions and events are of one snapshot, and one row, as each costs the
-- reader more than what is in it. Aggregates take the rows of a subquery in its order.
SELECT revisions.revisions, page.bodies, page.place
FROM (
{revisions}
) AS revisions, (
SELECT array_agg(body) AS bodies, (array_agg(place))[$last::integer] AS place
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
place, name, namespace

-- name: descending
place DESC, name DESC, namespace DESC

-- name: after_ascending
(place, name, namespace) > ($place::text::timestamptz, $name, $namespace)

-- name: after_descending
(place, name, namespace) < ($place::text::timestamptz, $name, $namespace)

-- name: only
{column} = ANY ($only_{column})

-- name: except
{column} <> ALL ($except_{column})

-- name: only_reason
ARRAY[reason, first_half(reason), second_half(reason)] && $only_reason

-- name: except_reason
NOT ARRAY[reason, first_half(reason), second_half(reason)] && $except_reason

-- name: since
last_timestamp >= $since::text::timestamptz

-- name: until
first_timestamp < $until::text::timestamptz

-- name: text
-- Unicode's full case folding, whatever the collation of the columns or the database.
(
    strpos(
        casefold(body_text(body, 'message') COLLATE pg_unicode_fast),
        casefold($text::text COLLATE pg_unicode_fast)
    ) > 0
    OR strpos(casefold(reason COLLATE pg_unicode_fast), casefold($text::text COLLATE pg_unicode_fast)) > 0
)
