-- catch_up: one caught-up projection has come forward by at most so many ids.
SELECT reached, head FROM catch_up_v1(%(projection)s, %(most)s);

-- checkpoint_of: how far a projection has come.
SELECT id FROM checkpoints WHERE projection = %(projection)s;

-- checkpoint: a projection has come at least this far.
INSERT INTO checkpoints (projection, id) VALUES (%(projection)s, %(id)s)
ON CONFLICT (projection) DO UPDATE SET id = greatest(checkpoints.id, excluded.id);

-- runs_beside_builds: runs whose feed goes on after an id and has a build beside it that does too.
SELECT r.id, r.build_id FROM runs r
JOIN streams s ON s.stream = r.id JOIN streams b ON b.stream = r.build_id
WHERE r.created_id <= %(after)s
  AND coalesce(s.ended_id > %(after)s, true) AND coalesce(b.ended_id > %(after)s, true);

-- rebuild_begin: empty tables stand in schema `next`, each like its live one.
SELECT rebuild_begin_v1(%(tables)s::text[]);

-- rebuild_page: the tables in `next` hold what these ids say.
SELECT rebuild_page_v1(%(projection)s, %(after)s, %(upto)s);

-- rebuild_swap: the new tables are the live ones, at the head of the log.
SELECT rebuild_swap_v1(%(projection)s, %(tables)s::text[], %(after)s) AS head;

-- rebuild_end: the old tables are gone.
SELECT rebuild_end_v1(%(tables)s::text[]);

-- rebuild_lock: whether this session alone may rebuild, until it ends.
SELECT pg_try_advisory_lock(4702111234474983747) AS granted;

-- projected_id: the id up to which the live tables of a projection have come, as this transaction sees them.
SELECT coalesce((SELECT id FROM checkpoints WHERE projection = %(projection)s), (SELECT max(id) FROM events), 0) AS id;

-- compare_table: how a live table differs from the one in `next`; see compare_table_v1.
SELECT key, live, folded, differences FROM compare_table_v1(%(name)s, %(after)s::bigint, %(upto)s::bigint, %(most)s::int);

-- rebuild_forget: nothing is left of a rebuild that was not swapped in.
DROP SCHEMA IF EXISTS next CASCADE;

-- telemetry: what an engine says of the steps of one run, of the next events after a cursor, and the id that these reach,
-- null at the end.
WITH range AS MATERIALIZED (
    SELECT * FROM page_ranges_v1(%(stream)s, NULL, %(after)s, 9223372036854775807, %(most)s, 16777216)
)
SELECT (SELECT max(last_id) FROM range) AS reached, e.id, e.type, e.recorded_at, e.data
FROM (SELECT) AS always LEFT JOIN (
    SELECT e.* FROM range AS r CROSS JOIN LATERAL events_between_v1(r.first_id, r.last_id) AS e
    WHERE e.bulk AND e.type ~ '^engine\..+\.(started|completed|finished|failed|canceled|skipped)$') AS e ON true
ORDER BY e.id;

-- config_name: what a config is called.
SELECT name FROM configs WHERE id = %(id)s;
