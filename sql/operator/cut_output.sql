-- Runs and builds of the last week whose output was not kept whole: how much is missing, and why.

SELECT stream, recorded_at, (data::jsonb ->> 'lines')::bigint AS lines, (data::jsonb ->> 'bytes')::bigint AS bytes,
       data::jsonb ->> 'reason' AS reason
FROM events
WHERE NOT bulk AND type IN ('run.log_gap', 'build.log_gap') AND recorded_at > clock_timestamp() - interval '7 days'
ORDER BY id DESC;
