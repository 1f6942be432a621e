-- What the API lists of an event is encoded once, by whoever stores it, so that a list is read and
-- joined and nothing of it is decoded: `projection/body.py`. What nobody selects by is in the body
-- alone.

ALTER TABLE event ADD COLUMN body bytea;

UPDATE event
SET body = convert_to(
    format(
        '{"metadata":{"name":%s,"namespace":%s},"involvedObject":{"name":%s,"namespace":%s},'
            '"reason":%s,"message":%s,"firstTimestamp":"%s","lastTimestamp":"%s","count":%s,'
            '"type":%s,"elemType":%s,"elemId":%s,"actionName":%s}',
        to_json(name), to_json(namespace), to_json(object_name), to_json(object_namespace),
        to_json(reason), to_json(message),
        to_char(first_timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        to_char(last_timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        count, to_json(type), to_json(elem_type), to_json(elem_id), to_json(action_name)
    ),
    'UTF8'
);

ALTER TABLE event ALTER COLUMN body SET NOT NULL;

CREATE FUNCTION body_text(body bytea, VARIADIC path text[]) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN convert_from(body, 'UTF8')::json #>> path;

CREATE OR REPLACE VIEW ops.events_v1 AS
SELECT
    execution_id,
    namespace,
    name,
    object_name,
    body_text(body, 'involvedObject', 'namespace') COLLATE "C" AS object_namespace,
    reason,
    first_half(reason) AS reason_zh,
    second_half(reason) AS reason_code,
    body_text(body, 'message') COLLATE "C" AS message,
    first_half(body_text(body, 'message') COLLATE "C") AS message_zh,
    second_half(body_text(body, 'message') COLLATE "C") AS message_en,
    first_timestamp,
    last_timestamp,
    count,
    type,
    elem_type,
    elem_id,
    action_name
FROM event;

CREATE OR REPLACE VIEW ops.elements_v1 AS
WITH lifecycle AS (
    SELECT
        execution_id,
        namespace,
        name,
        object_name,
        reason,
        first_timestamp,
        last_timestamp,
        count,
        elem_type,
        elem_id,
        action_name,
        CASE second_half(reason)
            WHEN 'ActionStart' THEN 'running'
            WHEN 'ActionRetry' THEN 'running'
            WHEN 'SuccessfulFinish' THEN 'succeeded'
            WHEN 'ActionFailed' THEN 'failed'
            WHEN 'ActionCancelled' THEN 'cancelled'
            WHEN 'ActionTimeout' THEN 'timed_out'
        END AS state
    FROM event
),
element AS (
    SELECT
        execution_id,
        namespace,
        object_name,
        elem_type,
        elem_id,
        -- The greatest last_timestamp wins, the terminal state on a tie.
        (array_agg(state ORDER BY last_timestamp DESC, state = 'running', name DESC))[1] AS state,
        (array_agg(action_name ORDER BY last_timestamp DESC, state = 'running', name DESC))[1] AS action_name,
        min(first_timestamp) FILTER (WHERE second_half(reason) = 'ActionStart') AS started,
        max(last_timestamp) FILTER (WHERE state <> 'running') AS last_end,
        least(coalesce(sum(count) FILTER (WHERE second_half(reason) = 'ActionStart'), 0), 9007199254740991)::bigint AS attempts
    FROM lifecycle
    WHERE state IS NOT NULL
    GROUP BY execution_id, namespace, object_name, elem_type, elem_id
)
SELECT
    execution_id,
    namespace,
    object_name,
    elem_type,
    elem_id,
    state,
    action_name,
    started,
    CASE WHEN state <> 'running' THEN last_end END AS finished,
    CASE WHEN state <> 'running' THEN last_end - started END AS duration,
    attempts
FROM element;

ALTER TABLE event DROP COLUMN object_namespace, DROP COLUMN message;
