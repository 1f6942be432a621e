-- What each revision of an execution changed, for whoever watches it. Rows are only added, and
-- removed after a while; `previous` tells whether any is missing in between.

CREATE TABLE execution_change (
    execution_id text COLLATE "C" NOT NULL,
    namespace    text COLLATE "C" NOT NULL,
    revision     bigint NOT NULL,
    previous     bigint,
    -- The names of the events that it added or changed.
    names        text[] COLLATE "C" NOT NULL,
    -- Of each of them, whether it changed texts, so that a filter may no longer give it.
    rewritten    boolean[] NOT NULL,
    PRIMARY KEY (execution_id, namespace, revision)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- Revisions are times, in microseconds: the oldest are removed by it.
CREATE INDEX execution_change_age ON execution_change (revision);
