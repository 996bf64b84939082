-- Every time in the last week that a worker was lost or handed its work back: which one, why, and what became of it.

SELECT stream, recorded_at, data::jsonb ->> 'worker_id' AS worker, (data::jsonb ->> 'attempt')::int AS attempt,
       data::jsonb ->> 'reason' AS reason, data::jsonb ->> 'next' AS next
FROM events
WHERE NOT bulk AND type IN ('run.lost', 'build.lost') AND recorded_at > clock_timestamp() - interval '7 days'
ORDER BY id DESC;
