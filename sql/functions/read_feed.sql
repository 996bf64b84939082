-- One page of a stream, and of a second one beside it, after a cursor: how many lines, the last one's id, whether there are
-- more, whether the feed ends with it, and all of them as one text. It keeps one plan for all feeds: as a statement it was
-- planned anew at each call, once the tables had statistics, which doubled the cost of a page of 100 lines.

CREATE OR REPLACE FUNCTION read_feed_v1(
    of_stream text, beside text, after bigint, upto bigint, most bigint, most_bytes bigint
) RETURNS TABLE (lines bigint, last_id bigint, more boolean, ended boolean, ndjson bytea)
LANGUAGE plpgsql STABLE ROWS 1 SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH page AS MATERIALIZED (
        SELECT e.* FROM page_ranges_v1(of_stream, beside, after, upto, most, most_bytes) AS r
        CROSS JOIN LATERAL events_between_v1(r.first_id, r.last_id) AS e
    ), moment AS MATERIALIZED (
        SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
    )
    SELECT count(id), coalesce(max(id), after),
           coalesce(coalesce(max(id), after) < least(upto, max(ended_id), max(newest)) AND max(newest) > 0, false),
           coalesce(coalesce(max(id), after) >= max(ended_id), false),
           convert_to(string_agg(event_line_v1(id, stream, seq, type, times, data), E'\n' ORDER BY id) || E'\n', 'UTF8')
    FROM (SELECT s.ended_id, greatest(s.last_id, b.last_id) AS newest
          FROM streams_with_last s LEFT JOIN streams_with_last b ON b.stream = beside
          WHERE s.stream = of_stream) AS feed
    LEFT JOIN (page JOIN moment USING (recorded_at)) ON true;
END $$;
