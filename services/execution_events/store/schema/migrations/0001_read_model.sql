-- The read model of design section 4. The schema is private: `ops` is what others may rely on.
-- Text is compared by byte ("C"), so that order is the same in SQL, in Python and after an upgrade
-- of the operating system.

CREATE TABLE event (
    execution_id     text COLLATE "C" NOT NULL,
    namespace        text COLLATE "C" NOT NULL,
    name             text COLLATE "C" NOT NULL,
    object_name      text COLLATE "C" NOT NULL,
    object_namespace text COLLATE "C" NOT NULL,
    reason           text COLLATE "C" NOT NULL,
    message          text COLLATE "C" NOT NULL,
    place            timestamptz NOT NULL,
    first_timestamp  timestamptz NOT NULL,
    last_timestamp   timestamptz NOT NULL,
    count            bigint NOT NULL,
    type             text COLLATE "C" NOT NULL,
    elem_type        text COLLATE "C" NOT NULL,
    elem_id          text COLLATE "C" NOT NULL,
    action_name      text COLLATE "C" NOT NULL,
    PRIMARY KEY (execution_id, namespace, name),
    CHECK (count BETWEEN 1 AND 9007199254740991),
    -- Infinity and years that Python cannot hold never come in (a read would raise).
    CHECK (place BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (first_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z'),
    CHECK (last_timestamp BETWEEN '1970-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z')
-- Room in each page for the new versions of rows that recur: updates stay heap-only (HOT) as long
-- as no index stands on a column that recurrences change.
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE execution (
    execution_id    text COLLATE "C" NOT NULL,
    namespace       text COLLATE "C" NOT NULL,
    revision        bigint NOT NULL,
    events          bigint NOT NULL,
    occurrences     bigint NOT NULL,
    first_timestamp timestamptz NOT NULL,
    last_timestamp  timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    changed_at      timestamptz NOT NULL,
    PRIMARY KEY (execution_id, namespace)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE partition_progress (
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    changed_at  timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

CREATE TABLE producer_progress (
    topic      text COLLATE "C" NOT NULL,
    partition  integer NOT NULL,
    source     text COLLATE "C" NOT NULL,
    sequence   bigint NOT NULL CHECK (sequence >= 0),
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (topic, partition, source)
) WITH (fillfactor = 70);

-- Header names are bytes as well: a producer may write what `text` cannot hold.
CREATE TABLE dead_letter (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic            text COLLATE "C" NOT NULL,
    partition        integer NOT NULL,
    record_offset    bigint NOT NULL,
    record_timestamp bigint NOT NULL,
    key              bytea,
    value            bytea,
    header_names     bytea[] NOT NULL,
    header_values    bytea[] NOT NULL,
    reason           text COLLATE "C" NOT NULL,
    detail           text NOT NULL,
    refused_at       timestamptz NOT NULL
);
