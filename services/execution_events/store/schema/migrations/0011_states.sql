-- States are kept, in the transaction of the events that they derive from: `projection/states.py`.

ALTER TABLE event ADD COLUMN action_hash bigint NOT NULL DEFAULT 0;
ALTER TABLE event ALTER COLUMN action_hash DROP DEFAULT;
-- An action that loses an event is recomputed from the others. The hash keeps the index small; its
-- upper half is of the execution, so that an execution's entries lie together.
CREATE INDEX event_action ON event (action_hash);

CREATE TABLE action (
    execution_id text COLLATE "C" NOT NULL,
    namespace    text COLLATE "C" NOT NULL,
    -- The first 16 bytes of SHA-256 over the next four columns, joined by NUL.
    action_key   bytea NOT NULL,
    object_name  text COLLATE "C" NOT NULL,
    elem_type    text COLLATE "C" NOT NULL,
    elem_id      text COLLATE "C" NOT NULL,
    action_name  text COLLATE "C" NOT NULL,
    state        text COLLATE "C" NOT NULL,
    -- The event that decides the state, and its last timestamp; null while it is unknown.
    decided_at   timestamptz,
    decided_by   text COLLATE "C",
    finished     timestamptz
        GENERATED ALWAYS AS (CASE WHEN state NOT IN ('running', 'unknown') THEN decided_at END) STORED,
    started      timestamptz,
    -- The greatest last timestamp, and of its events the one with the greatest name.
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

-- The number of an element's actions in each state.
CREATE TABLE element (
    execution_id text COLLATE "C" NOT NULL,
    namespace    text COLLATE "C" NOT NULL,
    -- The first 16 bytes of SHA-256 over object name, element type and element, joined by NUL.
    element_key  bytea NOT NULL,
    running      integer NOT NULL,
    succeeded    integer NOT NULL,
    failed       integer NOT NULL,
    timed_out    integer NOT NULL,
    cancelled    integer NOT NULL,
    unknown      integer NOT NULL,
    PRIMARY KEY (execution_id, namespace, element_key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

ALTER TABLE execution
    ADD COLUMN object_name text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN elements  bigint NOT NULL DEFAULT 0,
    ADD COLUMN running   bigint NOT NULL DEFAULT 0,
    ADD COLUMN succeeded bigint NOT NULL DEFAULT 0,
    ADD COLUMN failed    bigint NOT NULL DEFAULT 0,
    ADD COLUMN timed_out bigint NOT NULL DEFAULT 0,
    ADD COLUMN cancelled bigint NOT NULL DEFAULT 0,
    ADD COLUMN warnings  bigint NOT NULL DEFAULT 0,
    ADD COLUMN state text COLLATE "C" GENERATED ALWAYS AS (
        CASE
            WHEN failed > 0 THEN 'failed'
            WHEN timed_out > 0 THEN 'timed_out'
            WHEN running > 0 THEN 'running'
            WHEN cancelled > 0 THEN 'cancelled'
            WHEN succeeded > 0 THEN 'succeeded'
            ELSE 'unknown'
        END
    ) STORED;
