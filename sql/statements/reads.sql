-- artifacts_of_run: what a run left.
SELECT id, run_id, name, size, sha256, media_type, created_at FROM artifacts
WHERE run_id = %(run)s ORDER BY created_id;

-- artifact: one of them, with its run's workspace.
SELECT a.id, a.run_id, r.workspace_id, a.name, a.size, a.sha256, a.media_type
FROM artifacts a JOIN runs r ON r.id = a.run_id WHERE a.id = %(id)s;

-- workspaces: every workspace that was ever used, or of these those that were.
SELECT id, created_at FROM workspaces
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
SELECT holder AS id, count(*)::int AS leases, array_agg(stream ORDER BY stream) AS holds, max(heartbeat_at) AS heartbeat_at
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
