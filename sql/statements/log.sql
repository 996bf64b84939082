-- append: what was accepted is in the log; one row per append says how it went.
SELECT outcome, first_id, last_id, stream, last_control_id FROM append_events_v2(
    %b::int[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::int[], %b::bigint[], %b::int[],
    %b::boolean[], %b::text[], %b::text[], %b::int[], %b::int[], %b::int[], %b::text[], %b::boolean[], %b::text);

-- identity: which log this is, and its newest id.
SELECT log_id, coalesce((SELECT max(id) FROM events), 0) AS head, coalesce((SELECT min(id) FROM events), 0) AS oldest
FROM log;

-- head: the newest id, 0 for an empty log.
SELECT coalesce(max(id), 0) AS head FROM events;

-- stream: where one stream begins, stands and ends; no row for one that does not exist.
SELECT stream, workspace, first_id, last_id, last_seq, last_control_id, ended_id
FROM streams_with_last WHERE stream = %(stream)s;

-- control_events: the control events of some streams up to an id, in order: all that a fold needs.
SELECT id, stream, seq, workspace, type, recorded_at, convert_to(data, 'UTF8') AS data
FROM events WHERE NOT bulk AND stream = ANY(%(streams)s) AND id <= %(upto)s ORDER BY id;

-- read_log: one page of the whole log after a cursor: how many lines, the last one's id, whether there are more, the stream
-- whose output it all is, if there is one, and all of them as one text.
WITH page AS MATERIALIZED (
    SELECT id, stream, seq, type, bulk, recorded_at, data FROM (
        SELECT *, sum(octet_length(data)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - octet_length(data) AS before
        FROM events WHERE id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s) AS e
    WHERE before < %(most_bytes)s
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
)
SELECT count(*) AS lines, coalesce(max(id), %(after)s) AS last_id,
       coalesce(max(id), %(after)s) < least(%(upto)s, (SELECT max(id) FROM events)) AS more,
       CASE WHEN bool_and(bulk) AND min(stream) = max(stream) THEN min(stream) END AS output_of,
       convert_to(string_agg(event_line_v1(id, stream, seq, type, times, data), E'\n' ORDER BY id) || E'\n', 'UTF8') AS ndjson
FROM page JOIN moment USING (recorded_at);

-- read_feed: one page of a feed after a cursor; see read_feed_v1.
SELECT lines, last_id, more, ended, ndjson
FROM read_feed_v1(%(stream)s, %(beside)s, %(after)s, %(upto)s, %(limit)s, %(most_bytes)s);

-- read_feeds: the head, as number 0, and a page of each of many feeds that has one, each after its own cursor; all of one
-- moment. See read_feeds_v1.
SELECT 0 AS number, 0 AS lines, coalesce(max(id), 0) AS last_id, false AS more, false AS ended, NULL::bytea AS ndjson
FROM events
UNION ALL
SELECT number, lines, last_id, more, ended, ndjson
FROM read_feeds_v1(%(streams)s::text[], %(besides)s::text[], %(afters)s::bigint[], %(limit)s, %(most_bytes)s);

-- forget_append_keys: idempotency keys older than a day are gone.
DELETE FROM append_keys WHERE recorded_at < clock_timestamp() - interval '24 hours';

-- hint: those who listen know that they may read; workers too when something other than lines was appended.
SELECT pg_notify('ade_log', ''), CASE WHEN %(moved)s::boolean THEN pg_notify('ade_work', '') END;
