-- name: stored_offsets
SELECT partition, next_offset FROM partition_progress
WHERE topic = $1 AND partition = ANY ($2::integer[])

-- name: begin_partition
-- A partition without a stored offset begins where its log begins.
INSERT INTO partition_progress (topic, partition, next_offset, changed_at)
VALUES ($1, $2, $3, now())
ON CONFLICT (topic, partition) DO NOTHING

-- name: move_offsets
-- Compare and set: a partition whose stored offset is not the expected one gives no row, and the
-- caller gives up. Rows are locked in one order by all.
WITH move AS (
    SELECT * FROM unnest($2::integer[], $3::bigint[], $4::bigint[])
        AS move (partition, expected, next)
),
locked AS (
    SELECT partition FROM partition_progress
    WHERE topic = $1 AND partition = ANY ($2::integer[])
    ORDER BY partition
    FOR UPDATE
)
UPDATE partition_progress AS progress
SET next_offset = move.next, changed_at = now()
FROM move JOIN locked USING (partition)
WHERE progress.topic = $1
    AND progress.partition = move.partition
    AND progress.next_offset = move.expected
RETURNING progress.partition

-- name: watermarks
SELECT partition, source, sequence
FROM producer_progress
JOIN unnest($2::integer[], $3::text[]) AS wanted (partition, source) USING (partition, source)
WHERE topic = $1

-- name: move_watermarks
INSERT INTO producer_progress (topic, partition, source, sequence, changed_at)
SELECT $1, partition, source, sequence, now()
FROM unnest($2::integer[], $3::text[], $4::bigint[]) AS moved (partition, source, sequence)
ORDER BY partition, source
ON CONFLICT (topic, partition, source)
    DO UPDATE SET sequence = excluded.sequence, changed_at = excluded.changed_at
