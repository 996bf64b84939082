-- standing: how things stand in this deployment, a row for each number: its name, what it is of, and why it is there.
WITH waiting AS (
    SELECT 'run' AS kind, coalesce(waiting_for, 'worker') AS reason, created_at FROM runs WHERE status = 'queued'
    UNION ALL
    SELECT 'build', 'worker', created_at FROM builds WHERE status = 'queued'
), place AS (
    SELECT * FROM (VALUES ('run', 'build'), ('run', 'disk'), ('run', 'safe_mode'), ('run', 'worker'), ('build', 'worker'))
        AS p (kind, reason)
), head AS (
    SELECT coalesce(max(id), 0) AS id FROM events
)
SELECT 'queue_depth' AS name, kind AS of, reason, count(w.created_at)::float8 AS value
FROM place LEFT JOIN waiting AS w USING (kind, reason) GROUP BY kind, reason
UNION ALL
SELECT 'queue_age', kind, reason, coalesce(extract(epoch FROM clock_timestamp() - min(w.created_at)), 0)::float8
FROM place LEFT JOIN waiting AS w USING (kind, reason) GROUP BY kind, reason
UNION ALL
SELECT 'in_progress', 'run', NULL, count(*) FROM runs WHERE status = 'running'
UNION ALL
SELECT 'in_progress', 'build', NULL, count(*) FROM builds WHERE status = 'building'
UNION ALL
SELECT 'projection_lag', projection, NULL, head.id - c.id FROM checkpoints AS c CROSS JOIN head
UNION ALL
SELECT 'head', NULL, NULL, id FROM head
UNION ALL
SELECT 'safe_mode', NULL, NULL, coalesce((SELECT enabled FROM safe_mode), false)::int
UNION ALL
SELECT 'projectors', NULL, NULL, count(*) FROM leases WHERE stream = 'projector_lease' AND expires_at > clock_timestamp()
UNION ALL
SELECT 'processes', p.kind, NULL, count(a.pid)
FROM (VALUES ('api'), ('worker'), ('projector')) AS p (kind) LEFT JOIN (
    SELECT DISTINCT ON (application_name) application_name, pid FROM pg_stat_activity
    WHERE datname = current_database()) AS a ON a.application_name LIKE 'ade ' || p.kind || ' %%'
GROUP BY p.kind
UNION ALL
SELECT 'connections', NULL, NULL, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
UNION ALL
SELECT 'connections_max', NULL, NULL, current_setting('max_connections')::float8;
