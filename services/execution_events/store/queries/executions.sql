-- Parts of one statement, joined by `store/read/executions.py`: {…} is another part or a list of
-- columns, $name an argument. A caller's input is always an argument.
--
-- Executions are found by ranges of an index that has exactly the columns of the range, in the order of
-- the page. Another index would need a sort, which readers disable. So a page costs the same at any
-- depth, whatever the statistics say of rare states and small tenants.

-- name: page
-- The first failure is looked up for each execution of the page.
SELECT
    page.*,
    (
        SELECT body
        FROM execution_events.event
        WHERE event.execution_id = page.execution_id
            AND event.namespace = page.namespace
            AND event.name = (
                SELECT decided_by
                FROM execution_events.action
                WHERE action.execution_id = page.execution_id
                    AND action.namespace = page.namespace
                    AND action.state IN ('failed', 'timed_out')
                    AND page.state IN ('failed', 'timed_out')
                ORDER BY finished, object_name, elem_type, elem_id, action_name
                LIMIT 1
            )
    ) AS first_failure
FROM (
SELECT found.*
FROM (
{found}
) AS found
ORDER BY {order}
LIMIT $limit
) AS page
ORDER BY {order}

-- name: page_with_revisions
-- Executions by id, which are few, and the revisions of all of them, listed or not: a change of one may
-- bring it into the list, or behind its last page. Without executions, one row of nulls.
WITH own AS MATERIALIZED (
    SELECT own.*
    FROM unnest($execution_ids::text[]) AS wanted (execution_id)
    CROSS JOIN LATERAL (
        SELECT {columns}, revision
        FROM execution_events.execution
        -- A range again, so that only the primary key has its order.
        WHERE execution_id BETWEEN wanted.execution_id AND wanted.execution_id{of_tenants}
        ORDER BY execution_id, namespace
    ) AS own
)
SELECT page.*, revisions.revisions
FROM (
    SELECT
        jsonb_agg(
            jsonb_build_array(execution_id, namespace, revision) ORDER BY execution_id, namespace
        )::text AS revisions
    FROM own
) AS revisions
LEFT JOIN (
{page}
) AS page ON true
ORDER BY {order}

-- name: by_range
-- Of each tenant, state and object a page, if the index has them; the first of these pages are the page.
SELECT newest.*
FROM {ranges}
CROSS JOIN LATERAL (
    SELECT {columns}
    FROM execution_events.execution
    WHERE {equal}({created}, execution_id, namespace) {beyond} ({begin}, $execution_id, $namespace)
        AND {created} {within} {end}
    ORDER BY {range_order}{created} {direction}, execution_id {direction}, namespace {direction}
    LIMIT $limit
) AS newest

-- name: begin
$created_at::text::timestamptz

-- name: end
$end::text::timestamptz

-- name: in_utc
({moment} AT TIME ZONE 'UTC')

-- name: of_tenant
namespace = ANY (ARRAY[tenant.namespace])
        AND

-- name: of_state
state = wanted.state
        AND namespace = tenant.namespace
        AND

-- name: of_object
object_name = object.object_name
        AND namespace = tenant.namespace
        AND state = wanted.state
        AND

-- name: by_id
SELECT {columns}
FROM own
WHERE (created_at, execution_id, namespace) {beyond} ({begin}, $execution_id, $namespace)
    AND created_at {within} {end}{filters}

-- name: columns
execution_id,
namespace,
object_name,
state,
elements,
running,
succeeded,
failed,
timed_out,
cancelled,
warnings,
events,
occurrences,
first_timestamp,
last_timestamp,
created_at

-- name: all
(SELECT) AS everything

-- name: namespaces
unnest($namespaces::text[]) AS tenant (namespace)

-- name: every_namespace
-- One search of the index for each.
(
    WITH RECURSIVE known AS (
        (
            SELECT namespace FROM execution_events.execution ORDER BY namespace LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT namespace
            FROM execution_events.execution
            WHERE namespace > known.namespace
            ORDER BY namespace
            LIMIT 1
        )
        FROM known
        WHERE known.namespace IS NOT NULL
    )
    SELECT namespace FROM known WHERE namespace IS NOT NULL
) AS tenant

-- name: objects
unnest($object_names::text[]) AS object (object_name)

-- name: states
unnest($states::text[]) AS wanted (state)

-- name: only
AND {column} = ANY (${argument})
