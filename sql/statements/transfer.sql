-- import: a page of another log is in this one, if the outcome says so; see import_events_v1.
SELECT outcome, at_id, reason FROM import_events_v1(
    %b::text, %b::bigint, %b::text[], %b::bigint[], %b::text[], %b::text[], %b::boolean[], %b::boolean[], %b::text[],
    %b::text);

-- import_patience: a caller who is stopped for so long in this transaction loses it, and the log's lock with it.
SET LOCAL idle_in_transaction_session_timeout = '70s';

-- one_moment: every statement of this transaction sees the same state of the database.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- copied_tables: how SQLite makes and fills each table that people read by hand: with the same columns, in their order.
SELECT c.table_name AS name,
       format('CREATE TABLE %I (%s)', c.table_name, string_agg(format('%I %s', c.column_name,
           CASE WHEN c.data_type IN ('bigint', 'integer', 'boolean') THEN 'INTEGER' ELSE 'TEXT' END
           || CASE c.column_name WHEN 'id' THEN ' PRIMARY KEY' ELSE '' END), ', ' ORDER BY c.ordinal_position)) AS make,
       format('INSERT INTO %I VALUES (%s)', c.table_name, string_agg('?', ', ')) AS fill
FROM information_schema.columns c
WHERE c.table_schema = 'public' AND c.table_name IN ('events', 'runs', 'run_logs', 'builds', 'build_logs')
GROUP BY c.table_name;

-- copied_runs: a page of runs, by the id of the event that created them; JSON as it stands there, in its column's place.
SELECT *, options::text AS options, inputs::text AS inputs, result::text AS result FROM runs
WHERE created_id > %(after)s AND created_id <= %(upto)s ORDER BY created_id LIMIT %(limit)s;

-- copied_builds: a page of builds, by the id of the event that created them; JSON as it stands there, in its column's place.
SELECT *, packages::text AS packages FROM builds
WHERE created_id > %(after)s AND created_id <= %(upto)s ORDER BY created_id LIMIT %(limit)s;

-- copied_events: a page of events.
SELECT * FROM events WHERE id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s;

-- copied_run_logs: a page of the lines of runs.
SELECT * FROM run_logs WHERE id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s;

-- copied_build_logs: a page of the lines of builds.
SELECT * FROM build_logs WHERE id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s;

-- server: the major version of this server, and how many others are connected to this database.
SELECT current_setting('server_version_num')::int / 10000 AS major,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND coalesce(backend_type, 'client backend') = 'client backend') AS others;

-- log_lock: nobody appends until this transaction ends.
SELECT pg_advisory_xact_lock(4702111234474983745);

-- has_events_table: whether this database has the schema of a log.
SELECT to_regclass('public.events') IS NOT NULL AS known;

-- name_restored: the log has a name of its own, and remembers whose copy it is.
INSERT INTO log (origin) VALUES (%(origin)s) RETURNING log_id, origin;
