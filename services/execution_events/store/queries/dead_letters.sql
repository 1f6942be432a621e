-- name: list_dead_letters
-- A value can have a megabyte: a list shows how it begins.
SELECT
    id, topic, partition, record_offset, record_timestamp, key,
    length(value) AS value_bytes, substring(value FROM 1 FOR 256) AS value_begin,
    reason, detail, refused_at
FROM dead_letter
WHERE id > $1
ORDER BY id
LIMIT $2

-- name: insert_dead_letter
INSERT INTO dead_letter (
    topic, partition, record_offset, record_timestamp, key, value, header_names, header_values,
    reason, detail, refused_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now())
