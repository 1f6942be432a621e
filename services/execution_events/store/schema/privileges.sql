-- Who may do what: design section 4. Applied by every `migrate`, so that a database restored
-- or cloned from another gets them too. Roles belong to the whole server.

DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['execution_events_writer', 'execution_events_reader', 'execution_events_ops']
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', service);
                IF service = 'execution_events_ops' THEN
                    ALTER ROLE execution_events_ops SET statement_timeout = '30s';
                END IF;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- Another database's migration made it at the same moment.
        END;
    END LOOP;
    EXECUTE format(
        'REVOKE ALL ON DATABASE %I FROM PUBLIC, execution_events_writer', current_database()
    );
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO execution_events_writer, execution_events_reader, execution_events_ops',
        current_database()
    );
END
$$;

-- Also for the lock: it makes migrations of other databases, which give the same roles their
-- passwords, wait until this one has ended.
COMMENT ON ROLE execution_events_writer IS 'Of execution-events: stores events.';

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA execution_events FROM PUBLIC;

GRANT USAGE ON SCHEMA execution_events TO execution_events_writer, execution_events_reader;
GRANT SELECT ON execution_events.schema_version TO execution_events_writer, execution_events_reader;
GRANT SELECT, INSERT, UPDATE ON
    execution_events.event,
    execution_events.execution,
    execution_events.partition_progress,
    execution_events.producer_progress
    TO execution_events_writer;
GRANT SELECT, INSERT, DELETE ON execution_events.execution_change TO execution_events_writer;
GRANT SELECT, INSERT ON execution_events.dead_letter TO execution_events_writer;
-- What a retry or a discard records; the record itself and why it was refused stay as they were.
GRANT UPDATE (attempts, last_attempt_at, last_reason, last_detail, retried_at, discarded_at)
    ON execution_events.dead_letter TO execution_events_writer;
GRANT SELECT ON
    execution_events.event,
    execution_events.execution,
    execution_events.execution_change
    TO execution_events_reader;
-- What `reason` and `q` match.
GRANT EXECUTE ON FUNCTION
    execution_events.first_half(text),
    execution_events.second_half(text),
    execution_events.body_text(bytea, text[])
    TO execution_events_reader;

GRANT USAGE ON SCHEMA ops TO execution_events_ops;
GRANT SELECT ON ALL TABLES IN SCHEMA ops TO execution_events_ops;
-- The views call them with the rights of whoever reads.
GRANT EXECUTE ON FUNCTION
    execution_events.first_half(text),
    execution_events.second_half(text),
    execution_events.body_text(bytea, text[])
    TO execution_events_ops;
