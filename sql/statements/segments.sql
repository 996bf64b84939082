-- misplaced: the next segments after one, in the order of streams and ids, and whether each is wrong: it is to hold events
-- of its stream alone, numbered on from those of the one before it. Where its first and its last event have the right
-- numbers all between them are its stream's, for numbers are dense. What came after `upto` is not looked at.
SELECT stream, first_id, last_id, last_seq - events <> before
       OR NOT EXISTS (SELECT FROM events e WHERE e.id = first_id AND e.stream = s.stream AND e.seq = last_seq - s.events + 1)
       OR NOT EXISTS (SELECT FROM events e WHERE e.id = last_id AND e.stream = s.stream AND e.seq = last_seq) AS wrong
FROM (SELECT *, last_id - first_id + 1 AS events, lag(last_seq, 1, 0) OVER (PARTITION BY stream ORDER BY last_id) AS before
      FROM (SELECT * FROM segments WHERE (stream, last_id) >= (%(stream)s, %(last_id)s) AND last_id <= %(upto)s
            ORDER BY stream, last_id LIMIT 1000) AS next) AS s
WHERE (stream, last_id) <> (%(stream)s, %(last_id)s)
ORDER BY stream, last_id;

-- unled: the first event up to an id that no segment of its stream leads to; no row where each has one.
SELECT id FROM events e WHERE id <= %(upto)s
    AND NOT EXISTS (SELECT FROM segments s WHERE s.stream = e.stream AND s.last_id >= e.id AND s.first_id <= e.id)
ORDER BY id LIMIT 1;
