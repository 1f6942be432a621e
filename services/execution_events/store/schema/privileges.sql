-- The privileges of the service roles on the objects of the database. Applied by every `migrate`, so
-- that restored and cloned databases get them too. Absolute: what is not granted here is revoked.
-- `roles.sql` has what concerns the roles themselves, the database and PostgreSQL's own objects.

-- By default everybody may execute a new function and use a new type.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC;

REVOKE ALL ON SCHEMA execution_events, ops
    FROM PUBLIC, execution_events_writer, execution_events_reader, execution_events_ops;
REVOKE ALL ON ALL TABLES IN SCHEMA execution_events, ops
    FROM PUBLIC, execution_events_writer, execution_events_reader, execution_events_ops;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA execution_events, ops
    FROM PUBLIC, execution_events_writer, execution_events_reader, execution_events_ops;
REVOKE ALL ON ALL ROUTINES IN SCHEMA execution_events, ops
    FROM PUBLIC, execution_events_writer, execution_events_reader, execution_events_ops;

GRANT USAGE ON SCHEMA execution_events TO execution_events_writer, execution_events_reader;
GRANT SELECT ON execution_events.schema_version TO execution_events_writer, execution_events_reader;
GRANT SELECT, INSERT, UPDATE ON
    execution_events.event,
    execution_events.execution,
    execution_events.partition_progress,
    execution_events.producer_progress
    TO execution_events_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    execution_events.action,
    execution_events.event_rate
    TO execution_events_writer;
GRANT SELECT, INSERT, UPDATE ON execution_events.partition_report TO execution_events_writer;
GRANT SELECT, INSERT, DELETE ON execution_events.execution_change TO execution_events_writer;
GRANT SELECT, INSERT ON execution_events.dead_letter TO execution_events_writer;
-- Columns of retries and discards; the record and its refusal never change.
GRANT UPDATE (attempts, last_attempt_at, last_reason, last_detail, retried_at, discarded_at)
    ON execution_events.dead_letter TO execution_events_writer;
GRANT SELECT ON
    execution_events.event,
    execution_events.execution,
    execution_events.action,
    execution_events.execution_change
    TO execution_events_reader;
-- For the filters `reason` and `q`.
GRANT EXECUTE ON FUNCTION
    execution_events.first_half(text),
    execution_events.second_half(text),
    execution_events.body_text(bytea, text[])
    TO execution_events_reader;

GRANT USAGE ON SCHEMA ops TO execution_events_ops;
GRANT SELECT ON ALL TABLES IN SCHEMA ops TO execution_events_ops;
-- The views call them with the privileges of the querying role.
GRANT EXECUTE ON FUNCTION
    execution_events.first_half(text),
    execution_events.second_half(text),
    execution_events.body_text(bytea, text[])
    TO execution_events_ops;
