-- All that happened to one run or build, without its lines; say which: -v stream=run_…
-- A run's build, which is part of its feed, has a history of its own.

SELECT id, recorded_at, type, recorded_at - lag(recorded_at) OVER (ORDER BY id) AS after, left(data, 300) AS data
FROM events WHERE stream = :'stream' AND NOT bulk ORDER BY id;
