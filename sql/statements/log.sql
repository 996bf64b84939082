-- append: what was accepted is in the log; one row per append says how it went.
SELECT outcome, first_id, last_id, stream, last_control_id FROM append_events_v1(
    %b::int[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::int[], %b::bigint[], %b::int[],
    %b::boolean[], %b::text[], %b::text[], %b::text[], %b::boolean[], %b::text[]);

-- identity: which log this is, and its newest id.
SELECT log_id, coalesce((SELECT max(id) FROM events), 0) AS head, coalesce((SELECT min(id) FROM events), 0) AS oldest
FROM log;

-- head: the newest id, 0 for an empty log.
SELECT coalesce(max(id), 0) AS head FROM events;

-- stream: where one stream begins, stands and ends; no row for one that does not exist.
SELECT stream, workspace, first_id, last_id, last_seq, last_control_id, ended_id, bytes
FROM streams WHERE stream = %(stream)s;

-- control_events: the control events of some streams up to an id, in order: all that a fold needs.
SELECT id, stream, seq, workspace, type, extract(epoch FROM recorded_at)::float8 AS recorded_at, convert_to(data, 'UTF8') AS data
FROM events WHERE NOT bulk AND stream = ANY(%(streams)s) AND id <= %(upto)s ORDER BY id;

-- read_log: the lines of the whole log after a cursor.
WITH page AS MATERIALIZED (
    SELECT id, stream, seq, type, recorded_at, data FROM events
    WHERE id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
)
SELECT id, stream, type, convert_to(event_line_v1(id, stream, seq, type, times, data), 'UTF8') AS line
FROM page JOIN moment USING (recorded_at) ORDER BY id;

-- read_feed: the lines of one stream, and of a second one beside it, after a cursor and up to an id.
WITH page AS MATERIALIZED (
    (SELECT id, stream, seq, type, recorded_at, data FROM events
     WHERE stream = %(stream)s AND id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s)
    UNION ALL
    (SELECT id, stream, seq, type, recorded_at, data FROM events
     WHERE stream = %(beside)s AND id > %(after)s AND id <= %(upto)s ORDER BY id LIMIT %(limit)s)
    ORDER BY id LIMIT %(limit)s
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
)
SELECT id, stream, type, convert_to(event_line_v1(id, stream, seq, type, times, data), 'UTF8') AS line
FROM page JOIN moment USING (recorded_at) ORDER BY id;

-- read_feeds: the head, as number 0, and the next lines of many feeds, each after its own cursor; all of one moment.
WITH page AS MATERIALIZED (
    SELECT w.number, e.id, e.stream, e.seq, e.type, e.recorded_at, e.data
    FROM unnest(%(streams)s::text[], %(besides)s::text[], %(afters)s::bigint[])
             WITH ORDINALITY AS w (stream, beside, after, number)
    LEFT JOIN streams s ON s.stream = w.stream
    LEFT JOIN streams b ON b.stream = w.beside
    CROSS JOIN LATERAL (
        (SELECT id, stream, seq, type, recorded_at, data FROM events
         WHERE stream = w.stream AND id > w.after ORDER BY id LIMIT %(limit)s)
        UNION ALL
        (SELECT id, stream, seq, type, recorded_at, data FROM events
         WHERE stream = w.beside AND id > w.after ORDER BY id LIMIT %(limit)s)
        ORDER BY id LIMIT %(limit)s
    ) AS e
    WHERE greatest(s.last_id, b.last_id) > w.after
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
)
SELECT 0 AS number, coalesce(max(id), 0) AS id, NULL AS stream, NULL AS type, NULL::bytea AS line FROM events
UNION ALL
(SELECT number, id, stream, type, convert_to(event_line_v1(id, stream, seq, type, times, data), 'UTF8') AS line
 FROM page JOIN moment USING (recorded_at) ORDER BY number, id);

-- forget_append_keys: idempotency keys older than a day are gone.
DELETE FROM append_keys WHERE recorded_at < clock_timestamp() - interval '24 hours';

-- hint: those who listen know that they may read; workers too when something other than lines was appended.
SELECT pg_notify('ade_log', ''), CASE WHEN %(moved)s::boolean THEN pg_notify('ade_work', '') END;
