-- Every active build: whether new runs use it, how many runs that are not done need it, and when one last did.
-- `ade builds prune` goes by this.

SELECT b.id, c.workspace_id, c.name AS config, b.config_version AS version,
       b.id = (SELECT n.id FROM builds n JOIN config_versions v ON v.config_id = c.id AND v.version = n.config_version
               WHERE n.config_id = c.id AND v.digest = c.digest AND n.status = 'active'
               ORDER BY n.created_id DESC LIMIT 1) AS new_runs_use_it,
       count(r.id) FILTER (WHERE r.status IN ('queued', 'running')) AS runs_need_it,
       greatest(b.updated_at, max(r.updated_at)) AS last_used
FROM builds b JOIN configs c ON c.id = b.config_id LEFT JOIN runs r ON r.build_id = b.id
WHERE b.status = 'active'
GROUP BY b.id, c.id ORDER BY last_used;
