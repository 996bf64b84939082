-- A page of each of many feeds that has one, each after its own cursor. Most have none: most cursors stand where the log
-- ended a moment ago, and what came since tells which streams moved. Only those, and feeds that are further behind, are
-- looked up: to look up a thousand took twice as long as all the rest. It keeps one plan, as read_feed_v1 does: as a
-- statement it was planned anew at each call for up to nine feeds, which was more than half of its time.

CREATE OR REPLACE FUNCTION read_feeds_v1(
    streams text[], besides text[], afters bigint[], most bigint, most_bytes bigint
) RETURNS TABLE (number bigint, lines bigint, last_id bigint, more boolean, ended boolean, ndjson bytea)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    head  bigint := (SELECT coalesce(max(id), 0) FROM events);
    since bigint := least(head, greatest((SELECT min(after) FROM unnest(afters) AS after), head - 10 * cardinality(streams)));
BEGIN
    RETURN QUERY
    WITH moved AS MATERIALIZED (
        SELECT DISTINCT stream FROM events_between_v1(since + 1, head)
    ), page AS MATERIALIZED (
        SELECT w.number, s.ended_id, least(s.ended_id, greatest(s.last_id, b.last_id)) AS newest, e.*
        FROM unnest(streams, besides, afters) WITH ORDINALITY AS w (stream, beside, after, number)
        JOIN streams_with_last s ON s.stream = w.stream
        LEFT JOIN streams_with_last b ON b.stream = w.beside
        CROSS JOIN LATERAL page_ranges_v1(w.stream, w.beside, w.after, 9223372036854775807, most, most_bytes) AS r
        CROSS JOIN LATERAL events_between_v1(r.first_id, r.last_id) AS e
        WHERE (w.after < since OR w.stream IN (SELECT stream FROM moved) OR w.beside IN (SELECT stream FROM moved))
          AND least(s.ended_id, greatest(s.last_id, b.last_id)) > w.after
    ), moment AS MATERIALIZED (
        SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
    )
    SELECT number, count(*), max(id), max(id) < max(newest), coalesce(max(id) >= max(ended_id), false),
           convert_to(string_agg(event_line_v1(id, stream, seq, type, times, data), E'\n' ORDER BY id) || E'\n', 'UTF8')
    FROM page JOIN moment USING (recorded_at) GROUP BY number ORDER BY number;
END $$;
