-- run_page: of the runs that match, sorted, those after a mark; with how many match in all, where that is asked for: a
-- row without an id says so where none is left. `last_event_id` is the last event of each run's feed.
-- Filters that are not given are NULL. It is planned for what is given, so that of a CASE one branch is left: a sort and
-- a mark that an index has.
WITH matching AS NOT MATERIALIZED (
    SELECT r.* FROM runs r
    WHERE (%(workspace_id)s::text IS NULL OR r.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR r.workspace_id = ANY (%(workspaces)s))
      AND (%(config_id)s::text IS NULL OR r.config_id = %(config_id)s)
      AND (%(build_id)s::text IS NULL OR r.build_id = %(build_id)s)
      AND (%(status)s::text[] IS NULL OR r.status = ANY(%(status)s))
      AND (%(stop_reason)s::text[] IS NULL OR r.stop_reason = ANY(%(stop_reason)s))
      AND (%(created_after)s::float8 IS NULL OR r.created_at >= to_timestamp(%(created_after)s))
      AND (%(created_before)s::float8 IS NULL OR r.created_at < to_timestamp(%(created_before)s))
      AND (%(q)s::text IS NULL
           OR starts_with(lower(r.id), lower(%(q)s))
           OR strpos(lower(r.summary), lower(%(q)s)) > 0
           OR strpos(lower(r.error_message), lower(%(q)s)) > 0
           OR r.config_id IN (SELECT c.id FROM configs c WHERE strpos(lower(c.name), lower(%(q)s)) > 0)
           OR (r.options::text <> '{}' AND EXISTS (
               SELECT FROM json_each_text(r.options -> 'metadata') AS m WHERE strpos(lower(m.value), lower(%(q)s)) > 0)))
      AND (%(sort)s NOT IN ('finished', '-finished') OR r.finished_at IS NOT NULL)
      AND (%(sort)s NOT IN ('duration', '-duration') OR r.duration_ms IS NOT NULL)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'finished' THEN (finished_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s)
        WHEN '-finished' THEN (finished_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'duration' THEN (duration_ms, created_id) > (%(key)s::float8::bigint, %(place)s)
        WHEN '-duration' THEN (duration_ms, created_id) < (%(key)s::float8::bigint, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at WHEN 'finished' THEN finished_at END,
             CASE %(sort)s WHEN '-created' THEN created_at WHEN '-finished' THEN finished_at END DESC,
             CASE %(sort)s WHEN 'duration' THEN duration_ms END,
             CASE %(sort)s WHEN '-duration' THEN duration_ms END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT counted.total, r.id, r.workspace_id, r.config_id, r.config_version, r.config_digest, r.build_id, r.status,
       r.waiting_for, r.options, r.inputs, r.requested_by, r.attempt, r.worker_id, r.exit_code, r.error_message,
       r.stop_reason, r.summary, r.result, r.duration_ms, r.lines, r.bytes, r.created_id,
       extract(epoch FROM r.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM r.created_at)::float8 AS created_at, extract(epoch FROM r.started_at)::float8 AS started_at,
       extract(epoch FROM r.finished_at)::float8 AS finished_at, extract(epoch FROM r.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       coalesce(s.ended_id, greatest(s.last_id, b.last_id)) AS last_event_id
FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered r ON true
LEFT JOIN streams_with_last s ON s.stream = r.id
LEFT JOIN streams_with_last b ON b.stream = r.build_id
LEFT JOIN leases l ON l.stream = r.id AND l.holder IS NOT NULL
ORDER BY r.nth;

-- build_page: the same of builds.
WITH matching AS NOT MATERIALIZED (
    SELECT b.* FROM builds b
    WHERE (%(workspace_id)s::text IS NULL OR b.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR b.workspace_id = ANY (%(workspaces)s))
      AND (%(config_id)s::text IS NULL OR b.config_id = %(config_id)s)
      AND (%(status)s::text[] IS NULL OR b.status = ANY(%(status)s))
      AND (%(stop_reason)s::text[] IS NULL OR b.stop_reason = ANY(%(stop_reason)s))
      AND (%(created_after)s::float8 IS NULL OR b.created_at >= to_timestamp(%(created_after)s))
      AND (%(created_before)s::float8 IS NULL OR b.created_at < to_timestamp(%(created_before)s))
      AND (%(q)s::text IS NULL
           OR starts_with(lower(b.id), lower(%(q)s))
           OR strpos(lower(b.summary), lower(%(q)s)) > 0
           OR strpos(lower(b.error_message), lower(%(q)s)) > 0
           OR b.config_id IN (SELECT c.id FROM configs c WHERE strpos(lower(c.name), lower(%(q)s)) > 0))
      AND (%(sort)s NOT IN ('finished', '-finished') OR b.finished_at IS NOT NULL)
      AND (%(sort)s NOT IN ('duration', '-duration') OR b.duration_ms IS NOT NULL)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'finished' THEN (finished_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s)
        WHEN '-finished' THEN (finished_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'duration' THEN (duration_ms, created_id) > (%(key)s::float8::bigint, %(place)s)
        WHEN '-duration' THEN (duration_ms, created_id) < (%(key)s::float8::bigint, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at WHEN 'finished' THEN finished_at END,
             CASE %(sort)s WHEN '-created' THEN created_at WHEN '-finished' THEN finished_at END DESC,
             CASE %(sort)s WHEN 'duration' THEN duration_ms END,
             CASE %(sort)s WHEN '-duration' THEN duration_ms END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT counted.total, b.id, b.workspace_id, b.config_id, b.config_version, b.status, b.reason, b.fingerprint, b.engine,
       b.step, b.requested_by, b.attempt, b.worker_id, b.exit_code, b.error_message, b.stop_reason, b.summary,
       b.packages, b.python, b.duration_ms, b.created_id,
       extract(epoch FROM b.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM b.created_at)::float8 AS created_at, extract(epoch FROM b.started_at)::float8 AS started_at,
       extract(epoch FROM b.finished_at)::float8 AS finished_at, extract(epoch FROM b.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       s.last_id AS last_event_id
FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered b ON true
LEFT JOIN streams_with_last s ON s.stream = b.id
LEFT JOIN leases l ON l.stream = b.id AND l.holder IS NOT NULL
ORDER BY b.nth;

-- config_page: the same of configs, with the newest active build of what they hold now.
WITH matching AS NOT MATERIALIZED (
    SELECT c.* FROM configs c
    WHERE (%(workspace_id)s::text IS NULL OR c.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR c.workspace_id = ANY (%(workspaces)s))
      AND (%(q)s::text IS NULL OR starts_with(lower(c.id), lower(%(q)s)) OR strpos(lower(c.name), lower(%(q)s)) > 0)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'name' THEN (name, created_id) > (%(key)s, %(place)s)
        WHEN '-name' THEN (name, created_id) < (%(key)s, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at END, CASE %(sort)s WHEN '-created' THEN created_at END DESC,
             CASE %(sort)s WHEN 'name' THEN name END, CASE %(sort)s WHEN '-name' THEN name END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT counted.total, c.id, c.workspace_id, c.name, c.version, c.digest, c.created_id,
       extract(epoch FROM c.created_at)::float8 AS created_at, extract(epoch FROM c.updated_at)::float8 AS updated_at,
       (SELECT b.id FROM builds b
        JOIN config_versions v ON v.config_id = b.config_id AND v.version = b.config_version
        WHERE b.config_id = c.id AND v.digest = c.digest  -- an earlier version may have had the same content
          AND b.status = 'active' ORDER BY b.created_id DESC LIMIT 1) AS active_build_id
FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered c ON true
ORDER BY c.nth;

-- document_page: the same of documents.
WITH matching AS NOT MATERIALIZED (
    SELECT d.* FROM documents d
    WHERE (%(workspace_id)s::text IS NULL OR d.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR d.workspace_id = ANY (%(workspaces)s))
      AND (%(q)s::text IS NULL OR starts_with(lower(d.id), lower(%(q)s)) OR strpos(lower(d.name), lower(%(q)s)) > 0)
), page AS (
    SELECT * FROM matching
    WHERE %(key)s::text IS NULL OR CASE %(sort)s
        WHEN 'created' THEN (created_at, created_id) > (to_timestamp(%(key)s::float8), %(place)s::bigint)
        WHEN '-created' THEN (created_at, created_id) < (to_timestamp(%(key)s::float8), %(place)s)
        WHEN 'name' THEN (name, created_id) > (%(key)s, %(place)s)
        WHEN '-name' THEN (name, created_id) < (%(key)s, %(place)s) END
    ORDER BY CASE %(sort)s WHEN 'created' THEN created_at END, CASE %(sort)s WHEN '-created' THEN created_at END DESC,
             CASE %(sort)s WHEN 'name' THEN name END, CASE %(sort)s WHEN '-name' THEN name END DESC,
             CASE WHEN left(%(sort)s, 1) <> '-' THEN created_id END, CASE WHEN left(%(sort)s, 1) = '-' THEN created_id END DESC
    LIMIT %(limit)s
), numbered AS (SELECT *, row_number() OVER () AS nth FROM page)
SELECT counted.total, d.id, d.workspace_id, d.name, d.size, d.sha256, d.media_type, d.created_id,
       extract(epoch FROM d.created_at)::float8 AS created_at
FROM (SELECT CASE WHEN %(count)s THEN (SELECT count(*) FROM matching) END AS total) AS counted
LEFT JOIN numbered d ON true
ORDER BY d.nth;

-- run: one run, as a list shows it.
SELECT r.id, r.workspace_id, r.config_id, r.config_version, r.config_digest, r.build_id, r.status,
       r.waiting_for, r.options, r.inputs, r.requested_by, r.attempt, r.worker_id, r.exit_code, r.error_message,
       r.stop_reason, r.summary, r.result, r.duration_ms, r.lines, r.bytes, r.created_id,
       extract(epoch FROM r.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM r.created_at)::float8 AS created_at, extract(epoch FROM r.started_at)::float8 AS started_at,
       extract(epoch FROM r.finished_at)::float8 AS finished_at, extract(epoch FROM r.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       coalesce(s.ended_id, greatest(s.last_id, b.last_id)) AS last_event_id
FROM runs r
LEFT JOIN streams_with_last s ON s.stream = r.id
LEFT JOIN streams_with_last b ON b.stream = r.build_id
LEFT JOIN leases l ON l.stream = r.id AND l.holder IS NOT NULL
WHERE r.id = %(id)s;

-- build: one build, as a list shows it.
SELECT b.id, b.workspace_id, b.config_id, b.config_version, b.status, b.reason, b.fingerprint, b.engine,
       b.step, b.requested_by, b.attempt, b.worker_id, b.exit_code, b.error_message, b.stop_reason, b.summary,
       b.packages, b.python, b.duration_ms, b.created_id,
       extract(epoch FROM b.cancel_requested_at)::float8 AS cancel_requested_at,
       extract(epoch FROM b.created_at)::float8 AS created_at, extract(epoch FROM b.started_at)::float8 AS started_at,
       extract(epoch FROM b.finished_at)::float8 AS finished_at, extract(epoch FROM b.updated_at)::float8 AS updated_at,
       l.holder AS processing_by, extract(epoch FROM l.expires_at)::float8 AS lease_expires_at,
       extract(epoch FROM l.heartbeat_at)::float8 AS heartbeat_at,
       s.last_id AS last_event_id
FROM builds b
LEFT JOIN streams_with_last s ON s.stream = b.id
LEFT JOIN leases l ON l.stream = b.id AND l.holder IS NOT NULL
WHERE b.id = %(id)s;

-- config: one config, as a list shows it.
SELECT c.id, c.workspace_id, c.name, c.version, c.digest, c.created_id,
       extract(epoch FROM c.created_at)::float8 AS created_at, extract(epoch FROM c.updated_at)::float8 AS updated_at,
       (SELECT b.id FROM builds b
        JOIN config_versions v ON v.config_id = b.config_id AND v.version = b.config_version
        WHERE b.config_id = c.id AND v.digest = c.digest  -- an earlier version may have had the same content
          AND b.status = 'active' ORDER BY b.created_id DESC LIMIT 1) AS active_build_id
FROM configs c
WHERE c.id = %(id)s;

-- document: one document, as a list shows it.
SELECT d.id, d.workspace_id, d.name, d.size, d.sha256, d.media_type, d.created_id,
       extract(epoch FROM d.created_at)::float8 AS created_at
FROM documents d
WHERE d.id = %(id)s;
