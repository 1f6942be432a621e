-- The privileges of the service roles. Applied by every `migrate`, so that restored and cloned
-- databases get them too. Roles belong to the whole server.

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
            NULL; -- A concurrent migration of another database created it.
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

-- Its lock also makes concurrent migrations of other databases, which set the passwords of the same
-- roles, wait for this one.
COMMENT ON ROLE execution_events_writer IS 'Writer of execution-events.';

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
GRANT SELECT, INSERT, UPDATE, DELETE ON
    execution_events.action,
    execution_events.element
    TO execution_events_writer;
GRANT SELECT, INSERT, DELETE ON execution_events.execution_change TO execution_events_writer;
GRANT SELECT, INSERT ON execution_events.dead_letter TO execution_events_writer;
-- Columns of retries and discards; the record and its refusal never change.
GRANT UPDATE (attempts, last_attempt_at, last_reason, last_detail, retried_at, discarded_at)
    ON execution_events.dead_letter TO execution_events_writer;
GRANT SELECT ON
    execution_events.event,
    execution_events.execution,
    execution_events.action,
    execution_events.element,
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
