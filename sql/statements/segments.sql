-- misplaced: the next segments after one, in the order of streams and ids, and whether each is wrong: it is to hold events
-- of its stream alone, numbered on from those of the one before it. What came after `upto` is not looked at.
WITH page AS MATERIALIZED (
    SELECT * FROM (
        SELECT *, sum(events) FILTER (WHERE new) OVER (ORDER BY stream, last_id ROWS UNBOUNDED PRECEDING) - events AS passed,
               lag(last_seq, 1, 0) OVER (PARTITION BY stream ORDER BY last_id) AS before
        FROM (SELECT *, last_id - first_id + 1 AS events, (stream, last_id) <> (%(stream)s, %(last_id)s) AS new
              FROM segments WHERE (stream, last_id) >= (%(stream)s, %(last_id)s) AND last_id <= %(upto)s
              ORDER BY stream, last_id LIMIT 1000) AS s) AS s
    WHERE new AND passed < 50000  -- so that each look is short
)
SELECT stream, first_id, last_id, last_seq - events <> before OR events <> (
    SELECT count(*) FROM events_between_v1(first_id, last_id) AS e
    WHERE e.stream = page.stream AND e.seq = page.last_seq - (page.last_id - e.id)) AS wrong
FROM page ORDER BY stream, last_id;

-- unled: the first event up to an id that no segment of its stream leads to; no row where each has one.
SELECT id FROM events e WHERE id <= %(upto)s
    AND NOT EXISTS (SELECT FROM segments s WHERE s.stream = e.stream AND s.last_id >= e.id AND s.first_id <= e.id)
ORDER BY id LIMIT 1;
