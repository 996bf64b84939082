-- read_selections: the head, as number 0, and a page of each of many selections, each after its own cursor, with the id up
-- to which its rows were examined: in what lies before that, no event passes but those of the page. All of one moment.
WITH head AS MATERIALIZED (
    SELECT coalesce(max(id), 0) AS id FROM events
), wanted AS MATERIALIZED (
    SELECT w.number, w.control, w.stream, string_to_array(w.types, ',') AS types,
           string_to_array(w.workspaces, ',') AS workspaces,
           greatest(w.after, s.first_id - 1) AS after,
           CASE WHEN w.stream IS NULL THEN head.id ELSE coalesce(s.last_id, 0) END AS newest  -- nothing comes after it
    FROM unnest(%(controls)s::boolean[], %(types)s::text[], %(workspaces)s::text[], %(streams)s::text[],
                %(afters)s::bigint[]) WITH ORDINALITY AS w (control, types, workspaces, stream, after, number)
    LEFT JOIN streams_with_last s ON s.stream = w.stream
    CROSS JOIN head
), examined AS MATERIALIZED (
    -- Ids are dense, so a number of rows is a range of ids. Control events are counted in their index: where fewer are
    -- left there is no such row, and least() passes over it.
    SELECT *, least(newest, CASE WHEN control
        THEN (SELECT id FROM events WHERE NOT bulk AND id > wanted.after ORDER BY id OFFSET %(examined)s - 1 LIMIT 1)
        ELSE after + %(examined)s END) AS last
    FROM wanted
), page AS MATERIALIZED (
    SELECT x.number, e.id, e.stream, e.seq, e.type, e.recorded_at, e.data
    FROM examined AS x CROSS JOIN LATERAL (
        SELECT *, sum(octet_length(data)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - octet_length(data) AS before
        FROM ((SELECT * FROM events WHERE NOT x.control ORDER BY id)  -- ordered, so that a full page ends the reading
              UNION ALL
              (SELECT * FROM events WHERE x.control AND NOT bulk ORDER BY id)) AS either
        WHERE id > x.after AND id <= x.last
          AND (x.types IS NULL OR type LIKE ANY (x.types))
          AND (x.workspaces IS NULL OR workspace = ANY (x.workspaces))
          AND (x.stream IS NULL OR stream = x.stream)
        ORDER BY id LIMIT %(limit)s
    ) AS e
    WHERE e.before < %(most_bytes)s
), moment AS MATERIALIZED (
    SELECT recorded_at, event_times_v1(recorded_at) AS times FROM (SELECT DISTINCT recorded_at FROM page) AS m
), line AS (
    SELECT number, id, data, event_line_v1(id, stream, seq, type, times, data) AS line
    FROM page JOIN moment USING (recorded_at)
)
SELECT 0 AS number, 0 AS lines, id AS last_id, false AS more, NULL::bytea AS ndjson, id AS upto FROM head
UNION ALL
(SELECT number, lines, coalesce(last_id, after), upto < head.id, ndjson, upto
 FROM (SELECT x.number, x.after, count(line.id) AS lines, max(line.id) AS last_id,
              convert_to(string_agg(line, E'\n' ORDER BY line.id) || E'\n', 'UTF8') AS ndjson,
              CASE WHEN count(line.id) >= %(limit)s OR sum(octet_length(data)) >= %(most_bytes)s THEN max(line.id)
                   WHEN x.last < x.newest THEN x.last
                   ELSE max(head.id) END AS upto
       FROM examined AS x CROSS JOIN head LEFT JOIN line ON line.number = x.number
       GROUP BY x.number, x.after, x.last, x.newest) AS pages CROSS JOIN head ORDER BY number);
