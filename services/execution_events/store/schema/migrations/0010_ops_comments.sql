-- The comments of the public views.

COMMENT ON SCHEMA ops IS 'Supported views for operators and dashboards; use the role execution_events_ops.';

COMMENT ON VIEW ops.events_v1 IS 'Events: occurrences folded by execution_id, namespace and name.';
COMMENT ON COLUMN ops.events_v1.execution_id IS 'The execution; leads the index, so filter on it.';
COMMENT ON COLUMN ops.events_v1.reason_zh IS 'The reason before the first ##; the whole reason if it has none.';
COMMENT ON COLUMN ops.events_v1.reason_code IS 'The reason after the first ##, such as SuccessfulFinish; the whole reason if it has none.';
COMMENT ON COLUMN ops.events_v1.message_zh IS 'The message before the first ##; the whole message if it has none.';
COMMENT ON COLUMN ops.events_v1.message_en IS 'The message after the first ##; the whole message if it has none.';
COMMENT ON COLUMN ops.events_v1.first_timestamp IS 'Time of the first occurrence, by the producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.last_timestamp IS 'Time of the last occurrence, by the producers'' clocks.';
COMMENT ON COLUMN ops.events_v1.count IS 'Number of occurrences, at most 2^53-1.';
COMMENT ON COLUMN ops.events_v1.type IS 'Normal, Warning or another type chosen by the producer.';
COMMENT ON COLUMN ops.events_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.events_v1.action_name IS 'The element''s action, such as create.';

COMMENT ON VIEW ops.executions_v1 IS 'Executions, by namespace.';
COMMENT ON COLUMN ops.executions_v1.events IS 'Number of distinct events.';
COMMENT ON COLUMN ops.executions_v1.occurrences IS 'Number of occurrences, at most 2^53-1.';
COMMENT ON COLUMN ops.executions_v1.first_timestamp IS 'Least first_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.last_timestamp IS 'Greatest last_timestamp of its events.';
COMMENT ON COLUMN ops.executions_v1.created_at IS 'Time its first record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.changed_at IS 'Time its last record was stored, by the database''s clock.';
COMMENT ON COLUMN ops.executions_v1.revision IS 'Increases with each transaction that changes the execution; never repeats.';

COMMENT ON VIEW ops.elements_v1 IS 'Elements with at least one life-cycle event, and their states.';
COMMENT ON COLUMN ops.elements_v1.execution_id IS 'The execution; leads the index, so filter on it.';
COMMENT ON COLUMN ops.elements_v1.object_name IS 'The involved object''s name.';
COMMENT ON COLUMN ops.elements_v1.elem_id IS 'The element''s id in the execution''s DAG.';
COMMENT ON COLUMN ops.elements_v1.state IS 'running, succeeded, failed, cancelled or timed_out: by the life-cycle event with the greatest last_timestamp, on a tie the terminal one.';
COMMENT ON COLUMN ops.elements_v1.started IS 'Time of the first ActionStart; null if there is none.';
COMMENT ON COLUMN ops.elements_v1.finished IS 'Time of the terminal state; null while running.';
COMMENT ON COLUMN ops.elements_v1.duration IS 'finished - started; null if either is.';
COMMENT ON COLUMN ops.elements_v1.attempts IS 'Number of occurrences of ActionStart.';

COMMENT ON VIEW ops.pipeline_v1 IS 'Partitions and their progress.';
COMMENT ON COLUMN ops.pipeline_v1."offset" IS 'Offset of the next record to store; all earlier records are stored.';
COMMENT ON COLUMN ops.pipeline_v1.last_write IS 'Time of the last write, by the database''s clock.';
COMMENT ON COLUMN ops.pipeline_v1.age IS 'Time since the last write.';

COMMENT ON VIEW ops.dead_letters_v1 IS 'Refused records, unchanged, with their refusal and state.';
COMMENT ON COLUMN ops.dead_letters_v1.id IS 'The dead letter''s id.';
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
