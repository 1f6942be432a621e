-- name: insert_dead_letter
INSERT INTO execution_events.dead_letter (
    topic, partition, record_offset, record_timestamp, key, value, header_names, header_values,
    reason, detail, refused_at,
    truncated, full_key_bytes, full_value_bytes, full_headers, value_sha256
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now(), $11, $12, $13, $14, $15)

-- name: list_dead_letters
-- Values may have a megabyte; a list has their first bytes.
SELECT
    id, topic, partition, record_offset, record_timestamp,
    substring(key FROM 1 FOR 256) AS key,
    coalesce(full_value_bytes, length(value)) AS value_bytes,
    substring(value FROM 1 FOR 256) AS value_begin,
    reason, detail, refused_at, state, attempts, last_attempt_at, last_reason, last_detail,
    retried_at, discarded_at, truncated
FROM execution_events.dead_letter
WHERE (cardinality($1::bigint[]) = 0 OR id = ANY ($1))
    AND ($2::text IS NULL OR state = $2)
    AND ($3::text IS NULL OR reason = $3 OR last_reason = $3)
    AND ($4::text IS NULL OR topic = $4)
    AND ($5::integer IS NULL OR partition = $5)
    AND ($6::timestamptz IS NULL OR refused_at >= $6)
    AND ($7::timestamptz IS NULL OR refused_at < $7)
    AND id > $8
ORDER BY id
LIMIT $9

-- name: count_dead_letters
-- The filter is that of list_dead_letters.
SELECT count(*) AS letters, coalesce(max(id), 0) AS last
FROM execution_events.dead_letter
WHERE (cardinality($1::bigint[]) = 0 OR id = ANY ($1))
    AND ($2::text IS NULL OR state = $2)
    AND ($3::text IS NULL OR reason = $3 OR last_reason = $3)
    AND ($4::text IS NULL OR topic = $4)
    AND ($5::integer IS NULL OR partition = $5)
    AND ($6::timestamptz IS NULL OR refused_at >= $6)
    AND ($7::timestamptz IS NULL OR refused_at < $7)

-- name: content
SELECT
    key,
    coalesce(full_key_bytes, length(key)) AS key_bytes,
    value,
    coalesce(value_sha256, sha256(value)) AS value_sha256,
    coalesce(full_headers, cardinality(header_names)) AS header_count,
    header_names,
    header_values
FROM execution_events.dead_letter
WHERE id = $1

-- name: lock_open
-- Without a row if another session closed the letter meanwhile.
SELECT
    partition, record_offset, record_timestamp, key, value, header_names, header_values, truncated
FROM execution_events.dead_letter
WHERE id = $1 AND state = 'open'
FOR UPDATE

-- name: mark_retried
UPDATE execution_events.dead_letter
SET attempts = attempts + 1, last_attempt_at = now(), retried_at = now()
WHERE id = $1

-- name: mark_refused_again
UPDATE execution_events.dead_letter
SET attempts = attempts + 1, last_attempt_at = now(), last_reason = $2, last_detail = $3
WHERE id = $1

-- name: discard
UPDATE execution_events.dead_letter
SET discarded_at = now()
WHERE id = $1 AND state = 'open'
RETURNING id
