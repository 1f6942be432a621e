#!/bin/sh
# Creates what `execution-events migrate` needs: a database, and an owner that can create the other
# roles. The postgres image runs it once, on an empty data directory.
set -eu

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password EXECUTION_EVENTS_OWNER_PASSWORD
CREATE ROLE execution_events_owner LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE execution_events OWNER execution_events_owner;
SQL
