-- dispatchable_runs: runs that a worker must end or, where it may, begin: nobody living holds them, their build is done.
SELECT r.id, r.workspace_id FROM runs r
LEFT JOIN builds b ON b.id = r.build_id
LEFT JOIN leases l ON l.stream = r.id
WHERE r.status IN ('queued', 'running')
  AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
  AND (b.id IS NULL OR b.status NOT IN ('queued', 'building'))
  AND (%(begin)s::boolean OR r.status = 'running' OR b.status IN ('failed', 'canceled'))
ORDER BY r.created_id LIMIT %(limit)s;

-- dispatchable_builds: builds that a worker must end or, where it may, begin: nobody living holds them.
SELECT b.id, b.workspace_id FROM builds b
LEFT JOIN leases l ON l.stream = b.id
WHERE b.status IN ('queued', 'building') AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
  AND (%(begin)s::boolean OR b.status = 'building')
ORDER BY b.created_id LIMIT %(limit)s;

-- cancel_requests: which of these streams somebody wants to stop.
SELECT stream FROM events WHERE NOT bulk AND stream = ANY(%(streams)s)
  AND type IN ('run.cancel_requested', 'build.cancel_requested');

-- safe_mode: whether new work is refused.
SELECT enabled FROM safe_mode;

-- builds_of_config: the builds that a decision about a config looks at, newest first.
SELECT id, status, fingerprint FROM builds WHERE config_id = %(config)s ORDER BY created_id DESC LIMIT 1000;

-- config_named: the id of a config by its name.
SELECT id FROM configs WHERE workspace_id = %(workspace)s AND name = %(name)s;

-- stream_of_event: which stream an event belongs to.
SELECT stream FROM events WHERE id = %(id)s;

-- documents_by_id: what is known of some documents of a workspace.
SELECT id, name, size, sha256 FROM documents WHERE id = ANY(%(ids)s) AND workspace_id = %(workspace)s;

-- config_version: the content of one version of a config.
SELECT digest FROM config_versions WHERE config_id = %(config)s AND version = %(version)s;

-- append_key: what an idempotency key has done; no row for one that is new.
SELECT digest, first_id, last_id FROM append_keys WHERE key = %(key)s;
