#!/bin/sh
# Creates what `execution-events migrate` needs: a database, and an owner that can create the other
# roles. The postgres image runs it once, on an empty data directory. The server's log does not show
# the password.
set -eu

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password EXECUTION_EVENTS_OWNER_PASSWORD
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
CREATE ROLE execution_events_owner LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE execution_events OWNER execution_events_owner;
\connect execution_events
-- What PostgreSQL permits to everybody and only a superuser can revoke; as in
-- store/queries/roles.sql.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
    AND (
        proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'pg_logical_emit_message')
        OR proname ~ '^pg_(try_)?advisory_'
    ) \gexec
SQL
