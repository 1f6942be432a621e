-- name: unmet
-- Statements that roles and their database still need, in order. `for_login`: it concerns a login of
-- somebody else's, which only its administrator changes. $1 to $3 are the settings of each role, $4 is
-- the connection limit of operators.
WITH wanted AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (role, name, value)
),
role AS (
    SELECT wanted.role AS name, pg_roles.oid, rolconnlimit
    FROM (SELECT DISTINCT role FROM wanted) AS wanted
    LEFT JOIN pg_roles ON rolname = wanted.role
),
stored AS (
    SELECT
        setrole AS role,
        setdatabase <> 0 AS is_local,
        lower(split_part(setting, '=', 1)) AS name,
        substr(setting, strpos(setting, '=') + 1) AS value
    FROM pg_db_role_setting, unnest(setconfig) AS setting
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
),
ops AS (
    SELECT * FROM role WHERE name = 'execution_events_ops'
),
-- Logins with the privileges of operators. The settings of a role are not those of its members.
member AS (
    SELECT login.oid, rolname AS name, login.rolconnlimit
    FROM pg_roles AS login
    JOIN ops ON pg_has_role(login.oid, ops.oid, 'MEMBER') AND login.oid <> ops.oid
    WHERE rolcanlogin
        AND NOT rolsuper
        AND NOT rolcreaterole
        AND rolname <> current_user
        AND NOT EXISTS (SELECT FROM pg_database WHERE datdba = login.oid)
),
-- What PostgreSQL permits to everybody: large objects, messages in the WAL, advisory locks. Functions
-- that release locks remain: pools of connections call them to reset a session.
open_function AS (
    SELECT pg_proc.oid::regprocedure::text AS name
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace
        AND (
            proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'pg_logical_emit_message')
            OR proname ~ '^pg_(try_)?advisory_(xact_)?lock'
        )
        AND has_function_privilege('public', pg_proc.oid, 'EXECUTE')
)
SELECT statement, for_login
FROM (
    SELECT 1 AS step, format('CREATE ROLE %I', name) AS statement, false AS for_login
    FROM role
    WHERE oid IS NULL
UNION ALL
    SELECT 2, format('GRANT %I TO %I', name, current_user), false
    FROM ops
    WHERE oid IS NULL OR NOT pg_has_role(current_user, oid, 'USAGE')
UNION ALL
    SELECT 3, format('ALTER ROLE %I CONNECTION LIMIT %s', name, $4::integer), false
    FROM ops
    WHERE oid IS NULL OR rolconnlimit < 0
UNION ALL
    SELECT
        4,
        format('ALTER ROLE %I IN DATABASE %I SET %s = %L', role.name, current_database(), wanted.name, value),
        false
    FROM wanted
    JOIN role ON role.name = wanted.role
    WHERE NOT EXISTS (
        SELECT
        FROM stored
        WHERE is_local
            AND stored.role = role.oid
            AND stored.name = wanted.name
            AND stored.value = wanted.value
    )
UNION ALL
    SELECT 5, format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()), false
    WHERE has_database_privilege('public', current_database(), 'CONNECT, CREATE, TEMPORARY')
UNION ALL
    SELECT 6, format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM %I', current_database(), name), false
    FROM role
    WHERE has_database_privilege(oid, current_database(), 'CREATE, TEMPORARY')
        AND NOT has_database_privilege('public', current_database(), 'CREATE, TEMPORARY')
UNION ALL
    SELECT 7, format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name), false
    FROM role
    WHERE oid IS NULL
        OR has_database_privilege('public', current_database(), 'CONNECT')
        OR NOT has_database_privilege(oid, current_database(), 'CONNECT')
UNION ALL
    SELECT 8, 'REVOKE ALL ON SCHEMA public FROM PUBLIC', false
    FROM pg_namespace
    WHERE nspname = 'public' AND has_schema_privilege('public', oid, 'USAGE, CREATE')
UNION ALL
    SELECT
        9,
        format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', string_agg(name, ', ' ORDER BY name)),
        false
    FROM open_function
    HAVING count(*) > 0
UNION ALL
    -- A login may have another value, but not 0 in place of a limit.
    SELECT
        10,
        format('ALTER ROLE %I IN DATABASE %I SET %s = %L', member.name, current_database(), wanted.name, value),
        true
    FROM member
    JOIN wanted ON wanted.role = 'execution_events_ops'
    WHERE NOT EXISTS (
        SELECT
        FROM stored
        WHERE stored.role = member.oid
            AND stored.name = wanted.name
            AND (stored.value <> '0' OR wanted.value = '0')
    )
UNION ALL
    SELECT 11, format('ALTER ROLE %I CONNECTION LIMIT %s', name, $4::integer), true
    FROM member
    WHERE rolconnlimit < 0
) AS unmet
ORDER BY step, statement

-- name: missing_roles
SELECT name FROM unnest($1::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)

-- name: lock_roles
-- Concurrent migrations of other databases change the same roles. A block: PostgreSQL would log an
-- error for a statement that fails before the first migration, or for a login that may not run it.
DO $$
BEGIN
    COMMENT ON ROLE execution_events_writer IS 'Writer of execution-events.';
EXCEPTION
    WHEN undefined_object OR insufficient_privilege THEN NULL;
END
$$

-- name: set_password
SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)

-- name: privileges
-- The privileges of others than the owner, one a row.
SELECT format(
    '%s on %s for %s',
    privilege_type, object, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
)
FROM (
    SELECT 'schema ' || nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner))
    FROM pg_namespace
    WHERE nspname IN ('execution_events', 'ops')
UNION ALL
    SELECT
        pg_class.oid::regclass::text,
        relowner,
        coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
    FROM pg_class
    WHERE relnamespace IN (to_regnamespace('execution_events'), to_regnamespace('ops'))
UNION ALL
    SELECT format('%s.%I', attrelid::regclass, attname), relowner, attacl
    FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace IN (to_regnamespace('execution_events'), to_regnamespace('ops'))
UNION ALL
    SELECT pg_proc.oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc
    WHERE pronamespace IN (to_regnamespace('execution_events'), to_regnamespace('ops'))
UNION ALL
    SELECT
        CASE kind WHEN 'f' THEN 'new functions' ELSE 'new types' END,
        owner.oid,
        coalesce(
            (
                SELECT defaclacl
                FROM pg_default_acl
                WHERE defaclrole = owner.oid AND defaclnamespace = 0 AND defaclobjtype = kind
            ),
            acldefault(kind, owner.oid)
        )
    FROM pg_roles AS owner, unnest('{f,T}'::"char"[]) AS kind
    WHERE rolname = current_user
) AS object (object, owner, acl), aclexplode(acl)
WHERE grantee <> owner

-- name: end_ops_blockers
-- Sessions of operators that have held a lock on our relations for longer than $1. Materialized, so that
-- all conditions are checked before the first session is ended.
WITH blocker AS MATERIALIZED (
    SELECT DISTINCT activity.pid, activity.usename, activity.application_name
    FROM pg_locks AS held
    JOIN pg_class ON pg_class.oid = held.relation
    JOIN pg_stat_activity AS activity USING (pid)
    JOIN pg_roles AS ops ON ops.rolname = 'execution_events_ops'
    WHERE held.granted
        AND activity.datname = current_database()
        AND relnamespace IN (to_regnamespace('execution_events'), to_regnamespace('ops'))
        AND activity.xact_start < clock_timestamp() - $1::interval
        AND activity.pid <> pg_backend_pid()
        AND activity.usename <> current_user
        AND pg_has_role(activity.usesysid, ops.oid, 'MEMBER')
        AND pg_has_role(current_user, activity.usesysid, 'USAGE')
)
SELECT pid, usename, application_name FROM blocker WHERE pg_terminate_backend(pid)

-- name: blockers
SELECT DISTINCT activity.pid, activity.usename, activity.application_name
FROM pg_locks AS held
JOIN pg_class ON pg_class.oid = held.relation
JOIN pg_stat_activity AS activity USING (pid)
WHERE held.granted
    AND activity.datname = current_database()
    AND relnamespace IN (to_regnamespace('execution_events'), to_regnamespace('ops'))
    AND activity.pid <> pg_backend_pid()
ORDER BY pid

-- name: right
SELECT current_user AS role, has_table_privilege($1, $2) AS granted
