-- compatible_from: 0.1.0

-- The private schema `execution_events` and the public views in `ops`, for PostgreSQL 15 to 18.
--
-- Text columns have the collation "C": they compare by byte, so that order is the same in SQL, in
-- Python and after an upgrade of the operating system, whatever the database's locale.
--
-- No index has a column that recurrences change (`count`, `last_timestamp`, `last_seen`, `started`,
-- `revision`, `changed_at`), also not in its predicate: updates stay heap-only (HOT), in the room that
-- `fillfactor` leaves in each page. `state`, `finished` and what derives from them change when an
-- action ends, ends again or begins again. No index holds more than an execution_id, a namespace and
-- 600 further bytes, as an index row is limited to 2,704.


-- ## Events

-- One row an event: the recurrences of one execution_id, namespace and name, folded. One batch may
-- change all events of a page, so that more room is left than in other tables.
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
    -- its element in the lower. By it a writer finds the actions of an element, whose states are the
    -- element's, and the other events of an action that has lost one.
    element_hash    bigint NOT NULL,
    PRIMARY KEY (execution_id, namespace, name),
    CHECK (count BETWEEN 1 AND 9007199254740991),
    -- Neither infinity nor a year that Python cannot hold, which a read could not decode.
    CHECK (list_position BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (first_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (last_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- The order of lists, so that a page costs the same at any depth.
CREATE INDEX event_order ON event (execution_id, list_position, name, namespace);
-- Without deduplication: to merge the entries of recurrences would take longer than to add them.
CREATE INDEX event_element ON event (element_hash) WITH (deduplicate_items = off);


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

-- The newest executions: of all tenants, of one, of one in a state, of one object, and those that
-- failed. Lists by state or object are in the order of an expression that no other index has, so that
-- no statistics of rare states can lead the planner to another index.
CREATE INDEX execution_created ON execution (created_at, execution_id, namespace);
CREATE INDEX execution_tenant ON execution (namespace, created_at, execution_id);
CREATE INDEX execution_state
    ON execution (state, namespace, (created_at AT TIME ZONE 'UTC'), execution_id);
CREATE INDEX execution_object
    ON execution (object_name, namespace, state, (created_at AT TIME ZONE 'UTC'), execution_id);
CREATE INDEX execution_failed ON execution (created_at) WHERE state IN ('failed', 'timed_out');

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
    -- The first 8 bytes of SHA-256 over namespace, element type and action, joined by NUL: durations
    -- are compared within a kind, whose texts are too long for an index.
    kind         bigint NOT NULL,
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
    -- finished - started; null if either is.
    duration_seconds double precision GENERATED ALWAYS AS (
        CASE WHEN state NOT IN ('running', 'unknown')
            THEN date_part('epoch', decided_at - started)
        END
    ) STORED,
    -- Unlike `retries`, it changes once: an index by it does not prevent HOT updates.
    retried      boolean NOT NULL GENERATED ALWAYS AS (retries > 0) STORED,
    PRIMARY KEY (execution_id, namespace, action_key),
    CHECK (state IN ('running', 'succeeded', 'failed', 'timed_out', 'cancelled', 'unknown'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX action_running ON action (namespace) WHERE state = 'running';
CREATE INDEX action_retried ON action (namespace) WHERE retried;
CREATE INDEX action_failed ON action (finished) WHERE state IN ('failed', 'timed_out');
-- The first failure of an execution.
CREATE INDEX action_first_failed ON action (execution_id, namespace, finished)
    WHERE state IN ('failed', 'timed_out');
-- The last durations of a kind, without a look at the table.
CREATE INDEX action_duration ON action (kind, finished, duration_seconds, state)
    WHERE duration_seconds IS NOT NULL;


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

-- One row a partition: what its consumer reports once a second, in transactions of its own, as a
-- batch locks the progress of its partitions until it is stored.
CREATE TABLE partition_report (
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL,
    -- The offset after the last stable record, and the time at which Kafka gave it.
    log_end_offset bigint,
    observed_at    timestamptz,
    consumer       text COLLATE "C" NOT NULL,
    halted         text,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

-- One row a partition and minute, by the time of the transactions that store its records.
CREATE TABLE event_rate (
    minute       timestamptz NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL,
    -- All that were read: stored, duplicates and dead letters.
    records      bigint NOT NULL,
    occurrences  bigint NOT NULL,
    dead_letters bigint NOT NULL,
    PRIMARY KEY (minute, topic, partition)
) WITH (fillfactor = 50);


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

CREATE INDEX dead_letter_open ON dead_letter (refused_at) WHERE state = 'open';


-- ## Functions
-- PostgreSQL replaces each call by its body: they are not STRICT, which a body with CASE prevents, and
-- each argument occurs once, so that it is evaluated once.

-- The half of `<first>##<second>`, spaces trimmed; the whole where there is no `##`.
CREATE FUNCTION first_half(bilingual text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN btrim(split_part(bilingual, '##', 1));

CREATE FUNCTION second_half(bilingual text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN btrim(regexp_replace(bilingual, '^.*?##', ''));

-- A text in an event's body, by the names of its members.
CREATE FUNCTION body_text(body bytea, VARIADIC path text[]) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
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

CREATE VIEW ops.actions_v1 AS
SELECT
    action.execution_id,
    action.namespace,
    action.object_name,
    action.elem_type,
    action.elem_id,
    action.action_name,
    action.state,
    action.started,
    action.finished,
    action.finished - action.started AS duration,
    action.duration_seconds,
    action.attempts,
    action.retries,
    action.warnings,
    action.last_seen,
    second_half(latest.reason) COLLATE "C" AS last_reason_code,
    second_half(body_text(latest.body, 'message')) COLLATE "C" AS last_message_en,
    action.failure,
    action.fingerprint,
    action.retried
FROM action
-- A query without columns of the event does not join it.
LEFT JOIN event AS latest
    ON latest.execution_id = action.execution_id
    AND latest.namespace = action.namespace
    AND latest.name = action.last_event;

COMMENT ON VIEW ops.actions_v1 IS 'Actions of elements, and their states.';
COMMENT ON COLUMN ops.actions_v1.execution_id IS 'The execution; leads the index, so join and filter on it.';
COMMENT ON COLUMN ops.actions_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.actions_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.actions_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.actions_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.actions_v1.action_name IS 'The action, such as create.';
COMMENT ON COLUMN ops.actions_v1.state IS 'running, succeeded, failed, timed_out or cancelled, by the life-cycle event with the greatest last_timestamp, on a tie the first of failed, timed_out, cancelled, succeeded, running; unknown without a life-cycle event.';
COMMENT ON COLUMN ops.actions_v1.started IS 'Time of the latest ActionStart; null if there is none.';
COMMENT ON COLUMN ops.actions_v1.finished IS 'Time of the event that ended it; null while running or unknown.';
COMMENT ON COLUMN ops.actions_v1.duration IS 'finished - started; null if either is.';
COMMENT ON COLUMN ops.actions_v1.duration_seconds IS 'The duration in seconds.';
COMMENT ON COLUMN ops.actions_v1.attempts IS 'Number of occurrences of ActionStart, at most 2^53-1.';
COMMENT ON COLUMN ops.actions_v1.retries IS 'Number of occurrences of ActionRetry, at most 2^53-1.';
COMMENT ON COLUMN ops.actions_v1.warnings IS 'Number of occurrences of type Warning, at most 2^53-1.';
COMMENT ON COLUMN ops.actions_v1.last_seen IS 'Time of its last occurrence of any event.';
COMMENT ON COLUMN ops.actions_v1.last_reason_code IS 'Reason code of the event seen last, on a tie of the one that decides the state, else of the one with the greatest name.';
COMMENT ON COLUMN ops.actions_v1.last_message_en IS 'English message of that event.';
COMMENT ON COLUMN ops.actions_v1.failure IS 'English message that it failed with; null unless failed or timed_out.';
COMMENT ON COLUMN ops.actions_v1.fingerprint IS 'Hash of the failure without what varies between elements: equal causes have the same; null unless failed or timed_out.';
COMMENT ON COLUMN ops.actions_v1.retried IS 'True if retries is above 0; finds them by an index.';

CREATE VIEW ops.elements_v1 AS
SELECT
    execution_id,
    namespace,
    object_name,
    elem_type,
    elem_id,
    state,
    action_name,
    started,
    finished,
    finished - started AS duration,
    extract(epoch FROM finished - started)::double precision AS duration_seconds,
    actions,
    attempts,
    retries,
    warnings,
    last_seen
FROM (
    SELECT
        execution_id,
        namespace,
        object_name,
        elem_type,
        elem_id,
        (array_agg(state ORDER BY rank, last_seen DESC, action_name DESC))[1] AS state,
        (array_agg(action_name ORDER BY rank, last_seen DESC, action_name DESC))[1] AS action_name,
        min(started) AS started,
        CASE WHEN NOT bool_or(state = 'running') THEN max(finished) END AS finished,
        count(*) AS actions,
        least(sum(attempts), 9007199254740991)::bigint AS attempts,
        least(sum(retries), 9007199254740991)::bigint AS retries,
        least(sum(warnings), 9007199254740991)::bigint AS warnings,
        max(last_seen) AS last_seen
    FROM action
    -- The precedence of the states.
    CROSS JOIN LATERAL array_position(
        ARRAY['running', 'failed', 'timed_out', 'cancelled', 'succeeded', 'unknown'], state
    ) AS rank
    GROUP BY execution_id, namespace, object_name, elem_type, elem_id
) AS element;

COMMENT ON VIEW ops.elements_v1 IS 'Elements, and their states from those of their actions.';
COMMENT ON COLUMN ops.elements_v1.execution_id IS 'The execution; leads the index, so filter on it.';
COMMENT ON COLUMN ops.elements_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.elements_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.elements_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.elements_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.elements_v1.state IS 'running if any action runs, else the first that any action has of failed, timed_out, cancelled, succeeded, unknown.';
COMMENT ON COLUMN ops.elements_v1.action_name IS 'The action in that state that was seen last, on a tie the greatest name.';
COMMENT ON COLUMN ops.elements_v1.started IS 'Least started of its actions; null if none has one.';
COMMENT ON COLUMN ops.elements_v1.finished IS 'Greatest finished of its actions; null while any runs.';
COMMENT ON COLUMN ops.elements_v1.duration IS 'finished - started; null if either is.';
COMMENT ON COLUMN ops.elements_v1.duration_seconds IS 'The duration in seconds.';
COMMENT ON COLUMN ops.elements_v1.actions IS 'Number of its actions.';
COMMENT ON COLUMN ops.elements_v1.attempts IS 'Number of occurrences of ActionStart, at most 2^53-1.';
COMMENT ON COLUMN ops.elements_v1.retries IS 'Number of occurrences of ActionRetry, at most 2^53-1.';
COMMENT ON COLUMN ops.elements_v1.warnings IS 'Number of occurrences of type Warning, at most 2^53-1.';
COMMENT ON COLUMN ops.elements_v1.last_seen IS 'Time of its last occurrence of any event.';

CREATE VIEW ops.failures_v1 AS
SELECT
    execution_id,
    namespace,
    object_name,
    elem_type,
    elem_id,
    action_name,
    state,
    finished,
    attempts,
    -- The only reason that gives an action its state.
    CASE state WHEN 'failed' THEN 'ActionFailed' ELSE 'ActionTimeout' END COLLATE "C" AS reason_code,
    failure,
    fingerprint
FROM action
WHERE state IN ('failed', 'timed_out');

COMMENT ON VIEW ops.failures_v1 IS 'Actions that are failed or timed_out, also where another action of the element runs.';
COMMENT ON COLUMN ops.failures_v1.execution_id IS 'The execution.';
COMMENT ON COLUMN ops.failures_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.failures_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.failures_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.failures_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.failures_v1.action_name IS 'The action, such as create.';
COMMENT ON COLUMN ops.failures_v1.state IS 'failed or timed_out.';
COMMENT ON COLUMN ops.failures_v1.finished IS 'Time of the failure; indexed.';
COMMENT ON COLUMN ops.failures_v1.attempts IS 'Number of occurrences of ActionStart, at most 2^53-1.';
COMMENT ON COLUMN ops.failures_v1.reason_code IS 'ActionFailed or ActionTimeout.';
COMMENT ON COLUMN ops.failures_v1.failure IS 'English message of the failure.';
COMMENT ON COLUMN ops.failures_v1.fingerprint IS 'Hash of the failure without what varies between elements: equal causes have the same.';

CREATE VIEW ops.executions_v1 AS
SELECT
    execution.execution_id,
    execution.namespace,
    execution.object_name,
    execution.state,
    execution.elements,
    execution.running,
    execution.succeeded,
    execution.failed,
    execution.timed_out,
    execution.cancelled,
    execution.warnings,
    execution.events,
    execution.occurrences,
    execution.first_timestamp,
    execution.last_timestamp,
    extract(epoch FROM execution.last_timestamp - execution.first_timestamp)::double precision
        AS duration_seconds,
    execution.created_at,
    execution.changed_at,
    execution.revision,
    first_failure.elem_id AS first_failure_elem_id,
    first_failure.action_name AS first_failure_action_name,
    first_failure.reason_code AS first_failure_reason_code,
    first_failure.failure AS first_failure_message_en
FROM execution
LEFT JOIN LATERAL (
    SELECT elem_id, action_name, reason_code, failure
    FROM ops.failures_v1 AS failure
    WHERE failure.execution_id = execution.execution_id
        AND failure.namespace = execution.namespace
        AND execution.state IN ('failed', 'timed_out')
    ORDER BY finished, object_name, elem_type, elem_id, action_name
    LIMIT 1
) AS first_failure ON true;

COMMENT ON VIEW ops.executions_v1 IS 'Executions, by namespace, their states and first failures.';
COMMENT ON COLUMN ops.executions_v1.execution_id IS 'The execution.';
COMMENT ON COLUMN ops.executions_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.executions_v1.object_name IS 'The involved object''s name in its first record.';
COMMENT ON COLUMN ops.executions_v1.state IS 'The first that any element has of failed, timed_out, running, cancelled, succeeded, unknown.';
COMMENT ON COLUMN ops.executions_v1.elements IS 'Number of its elements.';
COMMENT ON COLUMN ops.executions_v1.running IS 'Number of elements that run.';
COMMENT ON COLUMN ops.executions_v1.succeeded IS 'Number of elements that succeeded.';
COMMENT ON COLUMN ops.executions_v1.failed IS 'Number of elements that failed.';
COMMENT ON COLUMN ops.executions_v1.timed_out IS 'Number of elements that timed out.';
COMMENT ON COLUMN ops.executions_v1.cancelled IS 'Number of elements that were cancelled.';
COMMENT ON COLUMN ops.executions_v1.warnings IS 'Number of occurrences of type Warning, at most 2^53-1.';
COMMENT ON COLUMN ops.executions_v1.events IS 'Number of distinct events.';
COMMENT ON COLUMN ops.executions_v1.occurrences IS 'Number of occurrences, at most 2^53-1.';
COMMENT ON COLUMN ops.executions_v1.first_timestamp IS 'Least first_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.last_timestamp IS 'Greatest last_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.duration_seconds IS 'last_timestamp - first_timestamp, in seconds.';
COMMENT ON COLUMN ops.executions_v1.created_at IS 'Time its first record was stored, by the database''s clock; indexed, also for one namespace.';
COMMENT ON COLUMN ops.executions_v1.changed_at IS 'Time its last record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.revision IS 'Increases with each transaction that changes the execution; never repeats.';
COMMENT ON COLUMN ops.executions_v1.first_failure_elem_id IS 'Element of its failure with the least finished, on a tie the least object_name, elem_type, elem_id and action_name; null unless the execution is failed or timed_out.';
COMMENT ON COLUMN ops.executions_v1.first_failure_action_name IS 'Action of that failure.';
COMMENT ON COLUMN ops.executions_v1.first_failure_reason_code IS 'ActionFailed or ActionTimeout.';
COMMENT ON COLUMN ops.executions_v1.first_failure_message_en IS 'English message of that failure.';

CREATE VIEW ops.quiet_v1 AS
SELECT
    action.execution_id,
    action.namespace,
    action.object_name,
    action.elem_type,
    action.elem_id,
    action.action_name,
    action.started,
    action.last_seen,
    greatest(extract(epoch FROM now() - action.last_seen), 0)::double precision AS silence_seconds,
    usual.seconds AS usual_seconds,
    second_half(latest.reason) COLLATE "C" AS last_reason_code
FROM action
LEFT JOIN event AS latest
    ON latest.execution_id = action.execution_id
    AND latest.namespace = action.namespace
    AND latest.name = action.last_event
LEFT JOIN LATERAL (
    SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY ended.duration_seconds) AS seconds
    FROM (
        SELECT duration_seconds
        FROM action AS other
        WHERE other.kind = action.kind
            AND duration_seconds IS NOT NULL
            AND finished >= now() - interval '7 days'
        ORDER BY finished DESC
        LIMIT 1000
    ) AS ended
    HAVING count(*) >= 5
) AS usual ON true
WHERE action.state = 'running';

COMMENT ON VIEW ops.quiet_v1 IS 'Actions that run, and for how long nothing has been heard of them.';
COMMENT ON COLUMN ops.quiet_v1.execution_id IS 'The execution.';
COMMENT ON COLUMN ops.quiet_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.quiet_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.quiet_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.quiet_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.quiet_v1.action_name IS 'The action, such as create.';
COMMENT ON COLUMN ops.quiet_v1.started IS 'Time of the latest ActionStart; null if there is none.';
COMMENT ON COLUMN ops.quiet_v1.last_seen IS 'Time of its last occurrence of any event.';
COMMENT ON COLUMN ops.quiet_v1.silence_seconds IS 'now() - last_seen in seconds, at least 0.';
COMMENT ON COLUMN ops.quiet_v1.usual_seconds IS '95th percentile of the durations of the last 1,000 actions of the same namespace, elem_type and action_name that ended within 7 days; null below 5.';
COMMENT ON COLUMN ops.quiet_v1.last_reason_code IS 'Reason code of the event seen last, as in actions_v1.';

CREATE VIEW ops.durations_v1 AS
-- One probe of the index for each kind, in place of a scan of all actions.
WITH RECURSIVE kind AS (
    (
        SELECT kind FROM action WHERE duration_seconds IS NOT NULL ORDER BY kind LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT action.kind
        FROM action
        WHERE duration_seconds IS NOT NULL AND action.kind > kind.kind
        ORDER BY action.kind
        LIMIT 1
    )
    FROM kind
    WHERE kind.kind IS NOT NULL
)
SELECT
    named.namespace,
    named.elem_type,
    named.action_name,
    durations.ended,
    durations.failed,
    durations.p50_seconds,
    durations.p95_seconds,
    durations.max_seconds
FROM kind
CROSS JOIN LATERAL (
    SELECT namespace, elem_type, action_name
    FROM action
    WHERE action.kind = kind.kind AND duration_seconds IS NOT NULL
    ORDER BY finished DESC
    LIMIT 1
) AS named
CROSS JOIN LATERAL (
    SELECT
        count(*) AS ended,
        count(*) FILTER (WHERE state IN ('failed', 'timed_out')) AS failed,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_seconds) AS p50_seconds,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_seconds) AS p95_seconds,
        max(duration_seconds) AS max_seconds
    FROM (
        SELECT duration_seconds, state
        FROM action
        WHERE action.kind = kind.kind
            AND duration_seconds IS NOT NULL
            AND finished >= now() - interval '7 days'
        ORDER BY finished DESC
        LIMIT 1000
    ) AS recent
    HAVING count(*) > 0
) AS durations;

COMMENT ON VIEW ops.durations_v1 IS 'Durations by namespace, elem_type and action_name: of the last 1,000 actions that ended within 7 days.';
COMMENT ON COLUMN ops.durations_v1.namespace IS 'The tenant''s namespace.';
COMMENT ON COLUMN ops.durations_v1.elem_type IS 'The element''s type, such as KubeDAG.init.';
COMMENT ON COLUMN ops.durations_v1.action_name IS 'The action, such as create.';
COMMENT ON COLUMN ops.durations_v1.ended IS 'Number of these actions, in any end state; only those with a known start.';
COMMENT ON COLUMN ops.durations_v1.failed IS 'Number of those that failed or timed out.';
COMMENT ON COLUMN ops.durations_v1.p50_seconds IS 'Median of their durations in seconds.';
COMMENT ON COLUMN ops.durations_v1.p95_seconds IS '95th percentile of their durations in seconds.';
COMMENT ON COLUMN ops.durations_v1.max_seconds IS 'Greatest of their durations in seconds.';

CREATE VIEW ops.event_rate_v1 AS
SELECT
    minute,
    partition,
    sum(records)::bigint AS records,
    sum(occurrences)::bigint AS occurrences,
    sum(dead_letters)::bigint AS dead_letters
FROM event_rate
GROUP BY minute, partition;

COMMENT ON VIEW ops.event_rate_v1 IS 'Records by the minute in which they were stored; kept for 14 days. A minute without records has no row.';
COMMENT ON COLUMN ops.event_rate_v1.minute IS 'Begin of the minute, by the database''s clock.';
COMMENT ON COLUMN ops.event_rate_v1.partition IS 'The partition.';
COMMENT ON COLUMN ops.event_rate_v1.records IS 'Number of records read: stored, duplicates and dead letters.';
COMMENT ON COLUMN ops.event_rate_v1.occurrences IS 'Number of occurrences counted.';
COMMENT ON COLUMN ops.event_rate_v1.dead_letters IS 'Number of refused records.';

CREATE VIEW ops.pipeline_v1 AS
SELECT
    topic,
    partition,
    progress.next_offset,
    report.log_end_offset,
    CASE WHEN report.log_end_offset > progress.next_offset
        THEN report.log_end_offset - progress.next_offset
        WHEN report.log_end_offset <= progress.next_offset THEN 0
    END AS lag,
    report.observed_at,
    progress.changed_at AS last_write,
    report.consumer,
    report.halted
FROM partition_progress AS progress
FULL JOIN partition_report AS report USING (topic, partition);

COMMENT ON VIEW ops.pipeline_v1 IS 'Partitions: their progress, and what their consumers report.';
COMMENT ON COLUMN ops.pipeline_v1.topic IS 'The topic.';
COMMENT ON COLUMN ops.pipeline_v1.partition IS 'The partition.';
COMMENT ON COLUMN ops.pipeline_v1.next_offset IS 'Offset of the next record to store; all earlier records are stored. Null before its consumer has read the log.';
COMMENT ON COLUMN ops.pipeline_v1.log_end_offset IS 'Offset after the last record that can be read, at observed_at.';
COMMENT ON COLUMN ops.pipeline_v1.lag IS 'log_end_offset - next_offset, at least 0.';
COMMENT ON COLUMN ops.pipeline_v1.observed_at IS 'Time at which Kafka gave log_end_offset, by the database''s clock; older than 30 seconds if no consumer is reading the partition or Kafka does not answer.';
COMMENT ON COLUMN ops.pipeline_v1.last_write IS 'Time of the last change of next_offset, by the database''s clock.';
COMMENT ON COLUMN ops.pipeline_v1.consumer IS 'Client id and host of the consumer that reads the partition, or did last.';
COMMENT ON COLUMN ops.pipeline_v1.halted IS 'Reason why its consumer has halted it; null if it has not.';

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
FROM dead_letter
WHERE state = 'open';

COMMENT ON VIEW ops.dead_letters_v1 IS 'Open dead letters: refused records, unchanged, with their refusal.';
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
COMMENT ON COLUMN ops.dead_letters_v1.state IS 'open: the record was neither stored by a retry nor discarded.';
COMMENT ON COLUMN ops.dead_letters_v1.attempts IS 'Number of retries.';
COMMENT ON COLUMN ops.dead_letters_v1.last_attempt_at IS 'Time of the last retry, by the database''s clock; null before the first.';
COMMENT ON COLUMN ops.dead_letters_v1.last_reason IS 'Reason of the last failed retry; null if none failed.';
COMMENT ON COLUMN ops.dead_letters_v1.last_detail IS 'Explanation of the last failed retry; null if none failed.';
COMMENT ON COLUMN ops.dead_letters_v1.retried_at IS 'Null: a letter that was retried is not open.';
COMMENT ON COLUMN ops.dead_letters_v1.discarded_at IS 'Null: a letter that was discarded is not open.';
COMMENT ON COLUMN ops.dead_letters_v1.truncated IS 'True if the record was too large to be stored whole; it cannot be retried.';
COMMENT ON COLUMN ops.dead_letters_v1.value_sha256 IS 'SHA-256 of the whole value; null if the record has none.';
