-- What became of a refused record, and what is known of one too large to be kept whole.

ALTER TABLE dead_letter
    -- Retries, with the one that succeeded; `last_reason` and `last_detail` are of the last that
    -- failed.
    ADD COLUMN attempts         integer NOT NULL DEFAULT 0,
    ADD COLUMN last_attempt_at  timestamptz,
    ADD COLUMN last_reason      text COLLATE "C",
    ADD COLUMN last_detail      text,
    ADD COLUMN retried_at       timestamptz,
    ADD COLUMN discarded_at     timestamptz,
    ADD COLUMN state            text COLLATE "C" GENERATED ALWAYS AS (
        CASE
            WHEN retried_at IS NOT NULL THEN 'retried'
            WHEN discarded_at IS NOT NULL THEN 'discarded'
            ELSE 'open'
        END
    ) VIRTUAL,
    -- Of a truncated record `full_*` and the hash tell what it was; of others they are null.
    ADD COLUMN truncated        boolean NOT NULL DEFAULT false,
    ADD COLUMN full_key_bytes   integer,
    ADD COLUMN full_value_bytes integer,
    ADD COLUMN full_headers     integer,
    ADD COLUMN value_sha256     bytea,
    ADD CHECK (retried_at IS NULL OR discarded_at IS NULL);

CREATE OR REPLACE VIEW ops.dead_letters_v1 AS
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
COMMENT ON VIEW ops.dead_letters_v1 IS 'One row a record that could not be stored, as it was, and what became of it.';
COMMENT ON COLUMN ops.dead_letters_v1.reason IS 'Why it was refused: no_value, not_utf8, not_json, invalid_event, wrong_key, invalid_headers or refused_by_database.';
COMMENT ON COLUMN ops.dead_letters_v1.key_bytes IS 'The length of the key, also where less is kept; null where there is none.';
COMMENT ON COLUMN ops.dead_letters_v1.value_bytes IS 'The length of the value, also where less is kept; null where there is none.';
COMMENT ON COLUMN ops.dead_letters_v1.key IS 'The key''s bytes, of a truncated record the first 64 KiB.';
COMMENT ON COLUMN ops.dead_letters_v1.value IS 'The value''s bytes, of a truncated record the first 64 KiB.';
COMMENT ON COLUMN ops.dead_letters_v1.state IS 'open; retried, when it was counted after all; or discarded.';
COMMENT ON COLUMN ops.dead_letters_v1.attempts IS 'How often it was retried, with the time that succeeded.';
COMMENT ON COLUMN ops.dead_letters_v1.last_attempt_at IS 'When it was last retried, by the database''s clock; null before that.';
COMMENT ON COLUMN ops.dead_letters_v1.last_reason IS 'Why the last retry that failed was refused; null where none did.';
COMMENT ON COLUMN ops.dead_letters_v1.last_detail IS 'The same in a sentence.';
COMMENT ON COLUMN ops.dead_letters_v1.retried_at IS 'When it was counted after all, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.discarded_at IS 'When it was discarded, by the database''s clock.';
COMMENT ON COLUMN ops.dead_letters_v1.truncated IS 'Whether the record was too large to be kept whole; such a one cannot be retried.';
COMMENT ON COLUMN ops.dead_letters_v1.value_sha256 IS 'The SHA-256 of the whole value; null where there is none.';
