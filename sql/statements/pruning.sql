-- builds_in_use: of these builds how they ended, whether new runs take them (`current`), whether runs that are not done
-- need them, and how many seconds ago they, or a run of theirs, last changed. One that is not known has no row.
SELECT b.id, b.config_id, b.status, b.created_id,
       b.id IS NOT DISTINCT FROM (
           SELECT n.id FROM builds n JOIN config_versions v ON v.config_id = n.config_id AND v.version = n.config_version
           JOIN configs c ON c.id = n.config_id AND c.digest = v.digest  -- a later version may have the same content
           WHERE n.config_id = b.config_id AND n.status = 'active' ORDER BY n.created_id DESC LIMIT 1) AS current,
       EXISTS (SELECT FROM runs r WHERE r.build_id = b.id AND r.status IN ('queued', 'running')) AS needed,
       extract(epoch FROM clock_timestamp()
                          - greatest(b.updated_at, (SELECT max(r.updated_at) FROM runs r WHERE r.build_id = b.id))
       )::float8 AS unused_s
FROM builds b WHERE b.id = ANY(%(ids)s) ORDER BY b.created_id DESC;
