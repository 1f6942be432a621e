-- compatible_from: 0.1.0

-- The private schema `execution_events` and the public views in `ops`, for PostgreSQL 15 to 18.
--
-- Text columns have the collation "C": they compare by byte, so that order is the same in SQL, in
-- Python and after an upgrade of the operating system, whatever the database's locale.
--
-- No index has a column that recurrences change (`count`, `last_timestamp`, `revision`,
-- `changed_at`): updates stay heap-only (HOT), in the room that `fillfactor` leaves in each page. No
-- index holds more than an execution_id, a namespace and 600 further bytes, as an index row is
-- limited to 2,704.


-- ## Events

-- One row an event: the recurrences of one execution_id, namespace and name, folded.
CREATE TABLE event (
    execution_id    text COLLATE "C" NOT NULL,
    namespace       text COLLATE "C" NOT NULL,
    name            text COLLATE "C" NOT NULL,
    object_name     text COLLATE "C" NOT NULL,
    reason          text COLLATE "C" NOT NULL,
    -- The first timestamp of its first record, which fixes its position in lists; never changes.
    list_position   timestamptz NOT NULL,
    first_timestamp timestamptz NOT NULL,
    last_timestamp  timestamptz NOT NULL,
    count           bigint NOT NULL,
    type            text COLLATE "C" NOT NULL,
    elem_type       text COLLATE "C" NOT NULL,
    elem_id         text COLLATE "C" NOT NULL,
    action_name     text COLLATE "C" NOT NULL,
    -- Its JSON in the API, encoded once by its writer (`projection/body.py`), so that a list
    -- decodes nothing. What no filter selects by is only here.
    body            bytea NOT NULL,
    -- Of its execution in the upper half, so that their entries in the index lie together, and of
    -- its element in the lower: an action that loses an event is computed from the others.
    element_hash    bigint NOT NULL,
    PRIMARY KEY (execution_id, namespace, name),
    CHECK (count BETWEEN 1 AND 9007199254740991),
    -- Neither infinity nor a year that Python cannot hold, which a read could not decode.
    CHECK (list_position BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (first_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (last_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z')
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

-- The order of lists, so that a page costs the same at any depth.
CREATE INDEX event_order ON event (execution_id, list_position, name, namespace);
CREATE INDEX event_element ON event (element_hash);


-- ## Executions

-- One row an execution and namespace. Writers lock it before its events.
CREATE TABLE execution (
    execution_id      text COLLATE "C" NOT NULL,
    namespace         text COLLATE "C" NOT NULL,
    -- Raised by each transaction that changes the execution, at least to the time in microseconds;
    -- null `previous_revision`: the execution has been changed by one transaction only.
    revision          bigint NOT NULL,
    previous_revision bigint,
    events            bigint NOT NULL,
    occurrences       bigint NOT NULL,
    first_timestamp   timestamptz NOT NULL,
    last_timestamp    timestamptz NOT NULL,
    created_at        timestamptz NOT NULL,
    changed_at        timestamptz NOT NULL,
    -- Of its first record.
    object_name       text COLLATE "C" NOT NULL,
    -- Its elements, and those in each state; the others are unknown.
    elements          bigint NOT NULL,
    running           bigint NOT NULL,
    succeeded         bigint NOT NULL,
    failed            bigint NOT NULL,
    timed_out         bigint NOT NULL,
    cancelled         bigint NOT NULL,
    warnings          bigint NOT NULL,
    state             text COLLATE "C" GENERATED ALWAYS AS (
        CASE
            WHEN failed > 0 THEN 'failed'
            WHEN timed_out > 0 THEN 'timed_out'
            WHEN running > 0 THEN 'running'
            WHEN cancelled > 0 THEN 'cancelled'
            WHEN succeeded > 0 THEN 'succeeded'
            ELSE 'unknown'
        END
    ) STORED,
    PRIMARY KEY (execution_id, namespace)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- The events that each revision changed, for watches. Rows are only added, and deleted after some
-- minutes; `previous` tells whether one is missing in between.
CREATE TABLE execution_change (
    execution_id text COLLATE "C" NOT NULL,
    namespace    text COLLATE "C" NOT NULL,
    revision     bigint NOT NULL,
    previous     bigint,
    names        text[] COLLATE "C" NOT NULL,
    -- Of each name, whether a text that filters match has changed; empty if none has.
    rewritten    boolean[] NOT NULL,
    PRIMARY KEY (execution_id, namespace, revision)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- Revisions are times: the oldest are deleted by it.
CREATE INDEX execution_change_age ON execution_change (revision);


-- ## States
-- Derived from the events and kept in their transactions (`projection/states.py`).

CREATE TABLE action (
    execution_id text COLLATE "C" NOT NULL,
    namespace    text COLLATE "C" NOT NULL,
    -- The first 16 bytes of SHA-256 over the next four columns, joined by NUL.
    action_key   bytea NOT NULL,
    object_name  text COLLATE "C" NOT NULL,
    elem_type    text COLLATE "C" NOT NULL,
    elem_id      text COLLATE "C" NOT NULL,
    action_name  text COLLATE "C" NOT NULL,
    -- As of its events: the state of an element is that of its actions, which are read together.
    element_hash bigint NOT NULL,
    state        text COLLATE "C" NOT NULL,
    -- The event that decides the state, and its last timestamp; null while it is unknown.
    decided_at   timestamptz,
    decided_by   text COLLATE "C",
    finished     timestamptz
        GENERATED ALWAYS AS (CASE WHEN state NOT IN ('running', 'unknown') THEN decided_at END) STORED,
    started      timestamptz,
    -- The greatest last timestamp, and the event that has it: on a tie `decided_by` if it is among
    -- them, else the one with the greatest name.
    last_seen    timestamptz NOT NULL,
    last_event   text COLLATE "C" NOT NULL,
    attempts     bigint NOT NULL,
    retries      bigint NOT NULL,
    warnings     bigint NOT NULL,
    failure      text COLLATE "C",
    fingerprint  text COLLATE "C",
    PRIMARY KEY (execution_id, namespace, action_key),
    CHECK (state IN ('running', 'succeeded', 'failed', 'timed_out', 'cancelled', 'unknown'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX action_element ON action (element_hash);


-- ## Progress

-- One row a partition: the offset of the next record to store, set in the transaction that stores
-- the records before it.
CREATE TABLE partition_progress (
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL,
    next_offset    bigint NOT NULL CHECK (next_offset >= 0),
    -- The log that the offset belongs to. Accepting another log begins a new epoch, so that an
    -- offset of the old one with the same number is never taken for one of the new.
    epoch          bigint NOT NULL DEFAULT 0,
    cluster_id     text COLLATE "C",
    -- The fingerprint of the last record, which tells whether the log is still the same: Kafka's
    -- protocol gives consumers no topic id.
    last_offset    bigint,
    last_timestamp bigint,
    last_hash      bytea,
    changed_at     timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

-- One row a source (`ce_source`) in a partition: its greatest sequence; records at or below it are
-- duplicates.
CREATE TABLE producer_progress (
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    source      text COLLATE "C" NOT NULL,
    -- The index holds the hash, as a source may have 1,024 bytes.
    source_hash bytea NOT NULL CHECK (source_hash = sha256(convert_to(source, 'UTF8'))),
    sequence    bigint NOT NULL CHECK (sequence >= 0),
    changed_at  timestamptz NOT NULL,
    PRIMARY KEY (topic, partition, source_hash)
) WITH (fillfactor = 70);


-- ## Dead letters

-- One row a refused record, unchanged, with its refusal and what became of it.
CREATE TABLE dead_letter (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic            text COLLATE "C" NOT NULL,
    partition        integer NOT NULL,
    record_offset    bigint NOT NULL,
    record_timestamp bigint NOT NULL,
    key              bytea,
    value            bytea,
    -- Names are bytes too: a producer may write what `text` cannot hold.
    header_names     bytea[] NOT NULL,
    header_values    bytea[] NOT NULL,
    -- Of a record too large to be stored whole: what it was; null of others.
    truncated        boolean NOT NULL DEFAULT false,
    full_key_bytes   integer,
    full_value_bytes integer,
    full_headers     integer,
    value_sha256     bytea,
    reason           text COLLATE "C" NOT NULL,
    detail           text NOT NULL,
    refused_at       timestamptz NOT NULL,
    -- Retries, including the one that succeeded; `last_*` are of the last that failed.
    attempts         integer NOT NULL DEFAULT 0,
    last_attempt_at  timestamptz,
    last_reason      text COLLATE "C",
    last_detail      text,
    retried_at       timestamptz,
    discarded_at     timestamptz,
    state            text COLLATE "C" GENERATED ALWAYS AS (
        CASE
            WHEN retried_at IS NOT NULL THEN 'retried'
            WHEN discarded_at IS NOT NULL THEN 'discarded'
            ELSE 'open'
        END
    ) STORED,
    CHECK (retried_at IS NULL OR discarded_at IS NULL)
);


-- ## Functions

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

-- A text in an event's body, by the names of its members.
CREATE FUNCTION body_text(body bytea, VARIADIC path text[]) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN convert_from(body, 'UTF8')::json #>> path;


-- ## Public views
-- A contract like the API: a new column goes to the end of its view, and a change of meaning is a
-- `_v2` beside `_v1`.

CREATE SCHEMA ops;
COMMENT ON SCHEMA ops IS 'Supported views for operators and dashboards; use the role execution_events_ops.';

CREATE VIEW ops.events_v1 AS
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

COMMENT ON VIEW ops.events_v1 IS 'Events: occurrences folded by execution_id, namespace and name.';
COMMENT ON COLUMN ops.events_v1.execution_id IS 'The execution; leads the index, so filter on it.';
COMMENT ON COLUMN ops.events_v1.namespace IS 'The tenant''s namespace (metadata.namespace).';
COMMENT ON COLUMN ops.events_v1.name IS 'The event''s name (metadata.name).';
COMMENT ON COLUMN ops.events_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.events_v1.object_namespace IS 'The involved object''s namespace.';
COMMENT ON COLUMN ops.events_v1.reason IS 'The reason as published: <zh>##<CamelCase>.';
COMMENT ON COLUMN ops.events_v1.reason_zh IS 'The reason before the first ##; the whole reason if it has none.';
COMMENT ON COLUMN ops.events_v1.reason_code IS 'The reason after the first ##, such as SuccessfulFinish; the whole reason if it has none.';
COMMENT ON COLUMN ops.events_v1.message IS 'The message as published: <zh> ## <en>.';
COMMENT ON COLUMN ops.events_v1.message_zh IS 'The message before the first ##; the whole message if it has none.';
COMMENT ON COLUMN ops.events_v1.message_en IS 'The message after the first ##; the whole message if it has none.';
COMMENT ON COLUMN ops.events_v1.first_timestamp IS 'Time of the first occurrence, by the producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.last_timestamp IS 'Time of the last occurrence, by the producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.count IS 'Number of occurrences, at most 2^53-1.';
COMMENT ON COLUMN ops.events_v1.type IS 'Normal, Warning or another type chosen by the producer.';
COMMENT ON COLUMN ops.events_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.events_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.events_v1.action_name IS 'The element''s action, such as create.';

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

COMMENT ON VIEW ops.executions_v1 IS 'Executions, by namespace.';
COMMENT ON COLUMN ops.executions_v1.execution_id IS 'The execution.';
COMMENT ON COLUMN ops.executions_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.executions_v1.events IS 'Number of distinct events.';
COMMENT ON COLUMN ops.executions_v1.occurrences IS 'Number of occurrences, at most 2^53-1.';
COMMENT ON COLUMN ops.executions_v1.first_timestamp IS 'Least first_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.last_timestamp IS 'Greatest last_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.created_at IS 'Time its first record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.changed_at IS 'Time its last record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.revision IS 'Increases with each transaction that changes the execution; never repeats.';

CREATE VIEW ops.elements_v1 AS
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

COMMENT ON VIEW ops.elements_v1 IS 'Elements with at least one life-cycle event, and their states.';
COMMENT ON COLUMN ops.elements_v1.execution_id IS 'The execution; leads the index, so filter on it.';
COMMENT ON COLUMN ops.elements_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.elements_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.elements_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.elements_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.elements_v1.state IS 'running, succeeded, failed, cancelled or timed_out: by the life-cycle event with the greatest last_timestamp, on a tie the terminal one.';
COMMENT ON COLUMN ops.elements_v1.action_name IS 'The action of that event.';
COMMENT ON COLUMN ops.elements_v1.started IS 'Time of the first ActionStart; null if there is none.';
COMMENT ON COLUMN ops.elements_v1.finished IS 'Time of the terminal state; null while running.';
COMMENT ON COLUMN ops.elements_v1.duration IS 'finished - started; null if either is.';
COMMENT ON COLUMN ops.elements_v1.attempts IS 'Number of occurrences of ActionStart.';

CREATE VIEW ops.pipeline_v1 AS
SELECT
    topic,
    partition,
    next_offset AS "offset",
    changed_at AS last_write,
    now() - changed_at AS age
FROM partition_progress;

COMMENT ON VIEW ops.pipeline_v1 IS 'Partitions and their progress.';
COMMENT ON COLUMN ops.pipeline_v1.topic IS 'The topic.';
COMMENT ON COLUMN ops.pipeline_v1.partition IS 'The partition.';
COMMENT ON COLUMN ops.pipeline_v1."offset" IS 'Offset of the next record to store; all earlier records are stored.';
COMMENT ON COLUMN ops.pipeline_v1.last_write IS 'Time of the last write, by the database''s clock.';
COMMENT ON COLUMN ops.pipeline_v1.age IS 'Time since the last write.';

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
    coalesce(full_key_bytes, length(key)) AS key_bytes,
    coalesce(full_value_bytes, length(value)) AS value_bytes,
    key,
    value,
    state,
    attempts,
    last_attempt_at,
    last_reason,
    last_detail,
    retried_at,
    discarded_at,
    truncated,
    coalesce(value_sha256, sha256(value)) AS value_sha256
FROM dead_letter;

COMMENT ON VIEW ops.dead_letters_v1 IS 'Refused records, unchanged, with their refusal and state.';
COMMENT ON COLUMN ops.dead_letters_v1.id IS 'The dead letter''s id.';
COMMENT ON COLUMN ops.dead_letters_v1.topic IS 'The topic of the record.';
COMMENT ON COLUMN ops.dead_letters_v1.partition IS 'The partition of the record.';
COMMENT ON COLUMN ops.dead_letters_v1."offset" IS 'The offset of the record.';
COMMENT ON COLUMN ops.dead_letters_v1.record_timestamp IS 'The record''s timestamp in Kafka; null if it has none.';
COMMENT ON COLUMN ops.dead_letters_v1.reason IS 'Reason of the refusal: no_value, not_utf8, not_json, invalid_event, wrong_key, invalid_headers or refused_by_database.';
COMMENT ON COLUMN ops.dead_letters_v1.detail IS 'Explanation of the refusal.';
COMMENT ON COLUMN ops.dead_letters_v1.refused_at IS 'Time of the refusal, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.key_bytes IS 'Length of the record''s key; null if it has none.';
COMMENT ON COLUMN ops.dead_letters_v1.value_bytes IS 'Length of the record''s value; null if it has none.';
COMMENT ON COLUMN ops.dead_letters_v1.key IS 'The key; the first 64 KiB if truncated.';
COMMENT ON COLUMN ops.dead_letters_v1.value IS 'The value; the first 64 KiB if truncated.';
COMMENT ON COLUMN ops.dead_letters_v1.state IS 'open, retried (the record is stored) or discarded.';
COMMENT ON COLUMN ops.dead_letters_v1.attempts IS 'Number of retries.';
COMMENT ON COLUMN ops.dead_letters_v1.last_attempt_at IS 'Time of the last retry, by the database''s clock; null before the first.';
COMMENT ON COLUMN ops.dead_letters_v1.last_reason IS 'Reason of the last failed retry; null if none failed.';
COMMENT ON COLUMN ops.dead_letters_v1.last_detail IS 'Explanation of the last failed retry; null if none failed.';
COMMENT ON COLUMN ops.dead_letters_v1.retried_at IS 'Time of the successful retry, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.discarded_at IS 'Time of the discard, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.truncated IS 'True if the record was too large to be stored whole; it cannot be retried.';
COMMENT ON COLUMN ops.dead_letters_v1.value_sha256 IS 'SHA-256 of the whole value; null if the record has none.';
