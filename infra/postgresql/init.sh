#!/bin/sh
# What `execution-events migrate` needs: a database of its own, and a role that may create the
# other roles. The postgres image runs it once, when its data directory is empty.
set -eu

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password EXECUTION_EVENTS_OWNER_PASSWORD
CREATE ROLE execution_events_owner LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE execution_events OWNER execution_events_owner;
SQL
