-- The public views: a contract like the API. New columns may be added at the end of a view; a
-- change of meaning is a `_v2` beside `_v1`.

CREATE SCHEMA ops;
COMMENT ON SCHEMA ops IS 'Supported views for operators and dashboards. Read them as execution_events_ops.';

-- The half of `<first>##<second>`, spaces trimmed; the whole where there is no `##`.
CREATE FUNCTION first_half(bilingual text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN btrim(split_part(bilingual, '##', 1));

CREATE FUNCTION second_half(bilingual text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN btrim(CASE strpos(bilingual, '##')
        WHEN 0 THEN bilingual
        ELSE substr(bilingual, strpos(bilingual, '##') + 2)
    END);

CREATE VIEW ops.events_v1 AS
SELECT
    execution_id,
    namespace,
    name,
    object_name,
    object_namespace,
    reason,
    first_half(reason) AS reason_zh,
    second_half(reason) AS reason_code,
    message,
    first_half(message) AS message_zh,
    second_half(message) AS message_en,
    first_timestamp,
    last_timestamp,
    count,
    type,
    elem_type,
    elem_id,
    action_name
FROM event;
COMMENT ON VIEW ops.events_v1 IS 'One row an event: its occurrences folded by execution_id, namespace and name.';
COMMENT ON COLUMN ops.events_v1.execution_id IS 'The execution; filter on it whenever you can, it leads the index.';
COMMENT ON COLUMN ops.events_v1.namespace IS 'The tenant''s namespace (metadata.namespace).';
COMMENT ON COLUMN ops.events_v1.name IS 'The event''s name (metadata.name).';
COMMENT ON COLUMN ops.events_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.events_v1.object_namespace IS 'The involved object''s namespace.';
COMMENT ON COLUMN ops.events_v1.reason IS 'The reason as published: <zh>##<CamelCase>.';
COMMENT ON COLUMN ops.events_v1.reason_zh IS 'The reason before the first ##, the whole where there is none.';
COMMENT ON COLUMN ops.events_v1.reason_code IS 'The reason after the first ##, such as SuccessfulFinish; the whole where there is none.';
COMMENT ON COLUMN ops.events_v1.message IS 'The message as published: <zh> ## <en>.';
COMMENT ON COLUMN ops.events_v1.message_zh IS 'The message before the first ##, the whole where there is none.';
COMMENT ON COLUMN ops.events_v1.message_en IS 'The message after the first ##, the whole where there is none.';
COMMENT ON COLUMN ops.events_v1.first_timestamp IS 'When the event first occurred, by its producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.last_timestamp IS 'When the event last occurred, by its producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.count IS 'Occurrences, each counted once; stops at 2^53-1.';
COMMENT ON COLUMN ops.events_v1.type IS 'Normal or Warning, or what the producer wrote.';
COMMENT ON COLUMN ops.events_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.events_v1.elem_id IS 'The element of the execution''s DAG.';
COMMENT ON COLUMN ops.events_v1.action_name IS 'The action of the element, such as create.';

CREATE VIEW ops.executions_v1 AS
SELECT
    execution_id,
    namespace,
    events,
    occurrences,
    first_timestamp,
    last_timestamp,
    created_at,
    changed_at,
    revision
FROM execution;
COMMENT ON VIEW ops.executions_v1 IS 'One row an execution and namespace.';
COMMENT ON COLUMN ops.executions_v1.execution_id IS 'The execution.';
COMMENT ON COLUMN ops.executions_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.executions_v1.events IS 'How many different events it has.';
COMMENT ON COLUMN ops.executions_v1.occurrences IS 'The sum of their occurrences; stops at 2^53-1.';
COMMENT ON COLUMN ops.executions_v1.first_timestamp IS 'The least first_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.last_timestamp IS 'The greatest last_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.created_at IS 'When its first record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.changed_at IS 'When its last record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.revision IS 'Grows with each transaction that changed the execution; never repeats.';

CREATE VIEW ops.elements_v1 AS
WITH lifecycle AS (
    SELECT
        event.*,
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
COMMENT ON VIEW ops.elements_v1 IS 'One row an element that has reported a life-cycle event: where it stands.';
COMMENT ON COLUMN ops.elements_v1.execution_id IS 'The execution; filter on it whenever you can, it leads the index.';
COMMENT ON COLUMN ops.elements_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.elements_v1.object_name IS 'The involved object.';
COMMENT ON COLUMN ops.elements_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.elements_v1.elem_id IS 'The element of the execution''s DAG.';
COMMENT ON COLUMN ops.elements_v1.state IS 'running, succeeded, failed, cancelled or timed_out: by the life-cycle event with the greatest last_timestamp, the terminal one on a tie.';
COMMENT ON COLUMN ops.elements_v1.action_name IS 'The action of that event.';
COMMENT ON COLUMN ops.elements_v1.started IS 'When its first ActionStart occurred; null where none is known.';
COMMENT ON COLUMN ops.elements_v1.finished IS 'When it reached its terminal state; null while it runs.';
COMMENT ON COLUMN ops.elements_v1.duration IS 'finished - started; null where one is.';
COMMENT ON COLUMN ops.elements_v1.attempts IS 'Occurrences of ActionStart.';

CREATE VIEW ops.pipeline_v1 AS
SELECT
    topic,
    partition,
    next_offset AS "offset",
    changed_at AS last_write,
    now() - changed_at AS age
FROM partition_progress;
COMMENT ON VIEW ops.pipeline_v1 IS 'One row a partition: how far the consumers are.';
COMMENT ON COLUMN ops.pipeline_v1.topic IS 'The topic.';
COMMENT ON COLUMN ops.pipeline_v1.partition IS 'The partition.';
COMMENT ON COLUMN ops.pipeline_v1."offset" IS 'The offset of the next record to store; all before it is stored.';
COMMENT ON COLUMN ops.pipeline_v1.last_write IS 'When it last moved, by the database''s clock.';
COMMENT ON COLUMN ops.pipeline_v1.age IS 'How long ago that was.';

CREATE VIEW ops.dead_letters_v1 AS
SELECT
    id,
    topic,
    partition,
    record_offset AS "offset",
    CASE WHEN record_timestamp BETWEEN 0 AND 253402300799999
        THEN 'epoch'::timestamptz + record_timestamp * interval '1 millisecond'
    END AS record_timestamp,
    reason,
    detail,
    refused_at,
    length(key) AS key_bytes,
    length(value) AS value_bytes,
    key,
    value
FROM dead_letter;
COMMENT ON VIEW ops.dead_letters_v1 IS 'One row a record that could not be stored, as it was.';
COMMENT ON COLUMN ops.dead_letters_v1.id IS 'The letter''s number.';
COMMENT ON COLUMN ops.dead_letters_v1.topic IS 'The topic of the record.';
COMMENT ON COLUMN ops.dead_letters_v1.partition IS 'The partition of the record.';
COMMENT ON COLUMN ops.dead_letters_v1."offset" IS 'The offset of the record.';
COMMENT ON COLUMN ops.dead_letters_v1.record_timestamp IS 'The record''s timestamp in Kafka; null where it has none.';
COMMENT ON COLUMN ops.dead_letters_v1.reason IS 'Why it was refused: no_value, not_utf8, not_json, invalid_event, wrong_key or invalid_headers.';
COMMENT ON COLUMN ops.dead_letters_v1.detail IS 'The same in a sentence.';
COMMENT ON COLUMN ops.dead_letters_v1.refused_at IS 'When it was refused, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.key_bytes IS 'The length of the key; null where there is none.';
COMMENT ON COLUMN ops.dead_letters_v1.value_bytes IS 'The length of the value; null where there is none.';
COMMENT ON COLUMN ops.dead_letters_v1.key IS 'The key''s bytes.';
COMMENT ON COLUMN ops.dead_letters_v1.value IS 'The value''s bytes.';
