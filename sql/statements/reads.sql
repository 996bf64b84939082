-- run_page: runs that match, newest first, before a page's mark; `last_event_id` is the last event of each run's feed.
SELECT r.id, r.workspace_id, r.config_id, r.config_version, r.config_digest, r.build_id, r.status, r.waiting_for,
       r.options, r.inputs, r.requested_by, r.attempt, r.worker_id, r.exit_code, r.error_message, r.stop_reason,
       r.summary, r.result, r.duration_ms, r.lines, r.bytes, r.created_id,
       extract(epoch FROM r.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM r.created_at)::float8 AS created_at, extract(epoch FROM r.started_at)::float8 AS started_at,
       extract(epoch FROM r.finished_at)::float8 AS finished_at, extract(epoch FROM r.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       coalesce(s.ended_id, greatest(s.last_id, b.last_id)) AS last_event_id
FROM runs r
JOIN streams_with_last s ON s.stream = r.id
LEFT JOIN streams_with_last b ON b.stream = r.build_id
LEFT JOIN leases l ON l.stream = r.id AND l.holder IS NOT NULL
WHERE (%(id)s::text IS NULL OR r.id = %(id)s)
  AND (%(workspace_id)s::text IS NULL OR r.workspace_id = %(workspace_id)s)
  AND (%(workspaces)s::text[] IS NULL OR r.workspace_id = ANY (%(workspaces)s))
  AND (%(config_id)s::text IS NULL OR r.config_id = %(config_id)s)
  AND (%(build_id)s::text IS NULL OR r.build_id = %(build_id)s)
  AND (%(status)s::text IS NULL OR r.status = %(status)s)
  AND (%(created_after)s::float8 IS NULL OR r.created_at >= to_timestamp(%(created_after)s))
  AND (%(created_before)s::float8 IS NULL OR r.created_at < to_timestamp(%(created_before)s))
  AND (%(q)s::text IS NULL OR strpos(lower(concat_ws(' ', r.id, r.summary, r.error_message, r.options ->> 'metadata')),
                                     lower(%(q)s)) > 0)
  AND r.created_id < %(before)s
ORDER BY r.created_id DESC LIMIT %(limit)s;

-- build_page: builds that match, newest first, before a page's mark.
SELECT b.id, b.workspace_id, b.config_id, b.config_version, b.status, b.reason, b.fingerprint, b.engine, b.step,
       b.requested_by, b.attempt, b.worker_id, b.exit_code, b.error_message, b.stop_reason, b.summary, b.packages,
       b.python, b.duration_ms, b.created_id,
       extract(epoch FROM b.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM b.created_at)::float8 AS created_at, extract(epoch FROM b.started_at)::float8 AS started_at,
       extract(epoch FROM b.finished_at)::float8 AS finished_at, extract(epoch FROM b.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       s.last_id AS last_event_id
FROM builds b
JOIN streams_with_last s ON s.stream = b.id
LEFT JOIN leases l ON l.stream = b.id AND l.holder IS NOT NULL
WHERE (%(id)s::text IS NULL OR b.id = %(id)s)
  AND (%(workspace_id)s::text IS NULL OR b.workspace_id = %(workspace_id)s)
  AND (%(workspaces)s::text[] IS NULL OR b.workspace_id = ANY (%(workspaces)s))
  AND (%(config_id)s::text IS NULL OR b.config_id = %(config_id)s)
  AND (%(status)s::text IS NULL OR b.status = %(status)s)
  AND (%(created_after)s::float8 IS NULL OR b.created_at >= to_timestamp(%(created_after)s))
  AND (%(created_before)s::float8 IS NULL OR b.created_at < to_timestamp(%(created_before)s))
  AND (%(q)s::text IS NULL OR strpos(lower(concat_ws(' ', b.id, b.summary, b.error_message)), lower(%(q)s)) > 0)
  AND b.created_id < %(before)s
ORDER BY b.created_id DESC LIMIT %(limit)s;

-- config_page: configs that match, newest first, before a page's mark, with the newest usable build of their version.
SELECT c.id, c.workspace_id, c.name, c.version, c.digest, c.created_id,
       extract(epoch FROM c.created_at)::float8 AS created_at, extract(epoch FROM c.updated_at)::float8 AS updated_at,
       (SELECT b.id FROM builds b WHERE b.config_id = c.id AND b.config_version = c.version AND b.status = 'active'
        ORDER BY b.created_id DESC LIMIT 1) AS active_build_id
FROM configs c
WHERE (%(id)s::text IS NULL OR c.id = %(id)s)
  AND (%(workspace_id)s::text IS NULL OR c.workspace_id = %(workspace_id)s)
  AND (%(workspaces)s::text[] IS NULL OR c.workspace_id = ANY (%(workspaces)s))
  AND c.created_id < %(before)s
ORDER BY c.created_id DESC LIMIT %(limit)s;

-- document_page: documents that match, newest first, before a page's mark.
SELECT id, workspace_id, name, size, sha256, media_type, created_id,
       extract(epoch FROM created_at)::float8 AS created_at
FROM documents
WHERE (%(id)s::text IS NULL OR id = %(id)s)
  AND (%(workspace_id)s::text IS NULL OR workspace_id = %(workspace_id)s)
  AND (%(workspaces)s::text[] IS NULL OR workspace_id = ANY (%(workspaces)s))
  AND created_id < %(before)s
ORDER BY created_id DESC LIMIT %(limit)s;

-- artifacts_of_run: what a run left.
SELECT id, run_id, name, size, sha256, media_type, extract(epoch FROM created_at)::float8 AS created_at
FROM artifacts WHERE run_id = %(run)s ORDER BY created_id;

-- artifact: one of them, with its run's workspace.
SELECT a.id, a.run_id, r.workspace_id, a.name, a.size, a.sha256, a.media_type
FROM artifacts a JOIN runs r ON r.id = a.run_id WHERE a.id = %(id)s;

-- workspaces: every workspace that was ever used, or of these those that were.
SELECT id, extract(epoch FROM created_at)::float8 AS created_at FROM workspaces
WHERE %(workspaces)s::text[] IS NULL OR id = ANY (%(workspaces)s) ORDER BY id;

-- feed_of_run: where a run's feed lies.
SELECT s.stream, r.build_id AS beside, s.first_id, s.ended_id, s.workspace,
       coalesce(s.ended_id, greatest(s.last_id, b.last_id)) AS last_id
FROM streams_with_last s JOIN runs r ON r.id = s.stream LEFT JOIN streams_with_last b ON b.stream = r.build_id
WHERE s.stream = %(stream)s;

-- feed_of_build: where a build's feed lies.
SELECT s.stream, NULL::text AS beside, s.first_id, s.ended_id, s.workspace, s.last_id
FROM streams_with_last s JOIN builds b ON b.id = s.stream WHERE s.stream = %(stream)s;

-- feed_bytes: how long the lines of a feed are, line ends counted, after a cursor and up to an id; the last redaction.
SELECT coalesce(sum(octet_length(event_line_v1(e.id, e.stream, e.seq, e.type, event_times_v1(e.recorded_at), e.data)) + 1), 0)::bigint
       AS bytes,
       (SELECT coalesce(max(r.id), 0) FROM events r
        WHERE r.stream = 'system_log' AND NOT r.bulk AND r.type = 'event.redacted') AS redacted
FROM segments g
CROSS JOIN LATERAL events_between_v1(greatest(g.first_id, %(after)s + 1), least(g.last_id, %(upto)s)) AS e
WHERE g.first_id <= %(upto)s AND g.stream = ANY(%(streams)s) AND g.last_id > %(after)s;

-- workers: who holds leases now, how many and of what, the oldest stream first.
SELECT holder AS id, count(*)::int AS leases, array_agg(stream ORDER BY stream) AS holds,
       extract(epoch FROM max(heartbeat_at))::float8 AS heartbeat_at
FROM leases WHERE holder IS NOT NULL AND expires_at > clock_timestamp() GROUP BY holder ORDER BY holder;

-- projector_lag: how many ids the slowest caught-up projection is behind; a receiver of traces that is away is no fault
-- of ours.
SELECT coalesce((SELECT max(id) FROM events), 0) - coalesce(min(id), 0) AS lag FROM checkpoints
WHERE projection <> 'traces';

-- last_id_upto: the last event of some streams up to an id.
SELECT max(last_id) AS last_id FROM (
    SELECT (SELECT least(g.last_id, %(upto)s) FROM segments g
            WHERE g.stream = s AND g.first_id <= %(upto)s ORDER BY g.last_id DESC LIMIT 1) AS last_id
    FROM unnest(%(streams)s::text[]) AS s) AS found;
