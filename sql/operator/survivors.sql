-- Where processes were left that did not end of SIGKILL: their host has them still, in the state D. The worker names it.

SELECT stream, recorded_at, data::jsonb ->> 'signal' AS signal, (data::jsonb ->> 'survivors')::int AS survivors,
       (SELECT data::jsonb ->> 'worker_id' FROM events b
        WHERE b.stream = e.stream AND b.id < e.id AND NOT b.bulk AND b.type IN ('run.started', 'build.started')
        ORDER BY b.id DESC LIMIT 1) AS worker
FROM events e
WHERE NOT bulk AND type IN ('run.signaled', 'build.signaled') AND (data::jsonb ->> 'survivors')::int > 0
  AND recorded_at > clock_timestamp() - interval '7 days'
ORDER BY id DESC;
