-- place_of_id: the first event of a stream with an id or a later one: its id and its number; behind the last one, the next.
SELECT id, seq FROM place_since_v1(%(stream)s, %(at)s);

-- place_of_seq: the event of a stream with a number, likewise.
SELECT id, seq FROM place_of_seq_v1(%(stream)s, %(at)s);

-- place_of_time: the first event of a stream that was recorded at a time or later, likewise.
SELECT p.id, p.seq FROM streams_with_last AS s
CROSS JOIN LATERAL place_since_v1(s.stream, id_since_v1(to_timestamp(%(at)s), s.first_id, s.last_id)) AS p
WHERE s.stream = %(stream)s;

-- search_stream: of the next `examined` events of a stream, the lines in whose payload a text may stand, as one text, and
-- the id up to which that is all of them. It stands there as JSON is written here; where a log was imported, perhaps
-- escaped in another way.
WITH range AS MATERIALIZED (
    SELECT * FROM page_ranges_v1(%(stream)s, NULL, %(after)s, %(upto)s, %(examined)s, %(examined_bytes)s)
), page AS MATERIALIZED (
    SELECT * FROM (
        SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.id ROWS UNBOUNDED PRECEDING) - octet_length(data) AS before
        FROM range AS r CROSS JOIN LATERAL events_between_v1(r.first_id, r.last_id) AS e
        CROSS JOIN LATERAL (SELECT CASE WHEN %(folded)s THEN lower(e.data COLLATE "C") ELSE e.data END AS payload) AS written
        WHERE written.payload LIKE %(plain)s OR (strpos(written.payload, '\') > 0 AND written.payload LIKE ANY (%(escaped)s))
        ORDER BY e.id LIMIT %(limit)s) AS e
    WHERE before < %(most_bytes)s
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
)
SELECT count(id) AS lines,
       CASE WHEN count(id) >= %(limit)s OR sum(octet_length(data)) >= %(most_bytes)s THEN max(id)
            ELSE coalesce((SELECT max(last_id) FROM range), %(upto)s) END AS last_id,
       convert_to(string_agg(event_line_v1(id, stream, seq, type, times, data), E'\n' ORDER BY id) || E'\n', 'UTF8') AS ndjson
FROM page JOIN moment USING (recorded_at);
