-- dispatchable: what a worker may begin, or must end: workspaces in turn, after the one that was served last; the oldest
-- first within each. A run whose build has failed only ends, and does so even where nothing may begin.
WITH free AS (
    SELECT b.id, b.workspace_id, b.created_id, NULL::text AS waiting_for, false AS only_ends
    FROM builds b LEFT JOIN leases l ON l.stream = b.id
    WHERE b.status = 'queued' AND (b.retry_at IS NULL OR b.retry_at <= clock_timestamp())
      AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
    UNION ALL
    SELECT r.id, r.workspace_id, r.created_id, r.waiting_for, coalesce(b.status IN ('failed', 'canceled'), false)
    FROM runs r LEFT JOIN builds b ON b.id = r.build_id LEFT JOIN leases l ON l.stream = r.id
    WHERE r.status = 'queued' AND (r.retry_at IS NULL OR r.retry_at <= clock_timestamp())
      AND (b.id IS NULL OR b.status NOT IN ('queued', 'building'))
      AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
), turns AS (
    SELECT *, row_number() OVER (PARTITION BY workspace_id COLLATE "C" ORDER BY created_id) AS turn FROM free
    WHERE %(begin)s::boolean OR only_ends
)
SELECT id, workspace_id, waiting_for, only_ends FROM turns
WHERE turn <= %(limit)s ORDER BY turn, workspace_id <= %(last)s, workspace_id LIMIT %(limit)s;

-- lost_work: what was begun, is not ended, and is in nobody's hands any more.
SELECT r.id FROM runs r LEFT JOIN leases l ON l.stream = r.id
WHERE r.status = 'running' AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
UNION ALL
SELECT b.id FROM builds b LEFT JOIN leases l ON l.stream = b.id
WHERE b.status = 'building' AND (l.holder IS NULL OR l.expires_at < clock_timestamp());

-- idle: which of these runs and builds of this deployment nobody executes, or is about to.
SELECT s.stream FROM streams s
LEFT JOIN runs r ON r.id = s.stream LEFT JOIN builds b ON b.id = s.stream LEFT JOIN leases l ON l.stream = s.stream
WHERE s.stream = ANY(%(streams)s) AND coalesce(r.status, b.status) NOT IN ('running', 'building')
  AND (l.holder IS NULL OR l.expires_at < clock_timestamp());

-- run_and_build: the control events of a run and of the build that it is bound to, up to an id, in order.
SELECT id, stream, seq, workspace, type, recorded_at, convert_to(data, 'UTF8') AS data
FROM events
WHERE NOT bulk AND id <= %(upto)s AND stream = ANY(ARRAY[%(run)s, (
    SELECT e.data::json ->> 'build_id' FROM streams s JOIN events e ON e.id = s.first_id WHERE s.stream = %(run)s)])
ORDER BY id;

-- cancel_requests: which of these streams somebody wants to stop.
SELECT stream FROM events WHERE NOT bulk AND stream = ANY(%(streams)s)
  AND type IN ('run.cancel_requested', 'build.cancel_requested');

-- safe_mode: whether new work is refused.
SELECT enabled FROM safe_mode;

-- held_back: the queued runs that say that they wait for this, and that a worker would begin if safe mode were off.
SELECT r.id FROM runs r LEFT JOIN builds b ON b.id = r.build_id LEFT JOIN leases l ON l.stream = r.id
WHERE r.status = 'queued' AND r.waiting_for = %(said)s AND coalesce(b.status, 'active') = 'active'
  AND (l.holder IS NULL OR l.expires_at < clock_timestamp())
ORDER BY r.created_id LIMIT 100;

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
