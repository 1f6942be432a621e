-- name: add_rates
-- In the transaction of the records, whose minute is that of its begin.
INSERT INTO execution_events.event_rate (minute, topic, partition, records, occurrences, dead_letters)
SELECT date_bin('1 minute', now(), 'epoch'), $1, partition, records, occurrences, dead_letters
FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS added (partition, records, occurrences, dead_letters)
ORDER BY partition
ON CONFLICT (minute, topic, partition) DO UPDATE SET
    records = event_rate.records + excluded.records,
    occurrences = event_rate.occurrences + excluded.occurrences,
    dead_letters = event_rate.dead_letters + excluded.dead_letters

-- name: purge_rates
DELETE FROM execution_events.event_rate
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM execution_events.event_rate
    WHERE minute < now() - $1::interval
    ORDER BY minute
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))

-- name: report_partitions
-- A null `age`: the end of the log is not known to this consumer yet, and that of the one before stays.
INSERT INTO execution_events.partition_report (
    topic, partition, log_end_offset, observed_at, consumer, halted
)
SELECT
    $1,
    partition,
    log_end_offset,
    clock_timestamp() - age * interval '1 second',
    $2,
    halted
FROM unnest($3::integer[], $4::bigint[], $5::double precision[], $6::text[])
    AS report (partition, log_end_offset, age, halted)
ORDER BY partition
ON CONFLICT (topic, partition) DO UPDATE SET
    log_end_offset = coalesce(excluded.log_end_offset, partition_report.log_end_offset),
    observed_at = coalesce(excluded.observed_at, partition_report.observed_at),
    consumer = excluded.consumer,
    halted = excluded.halted
