-- How runs and builds that did not go well have ended in the last day: by reason, with the newest of each.

SELECT kind, stop_reason, count(*) AS times, max(finished_at) AS last_at,
       (array_agg(id ORDER BY finished_at DESC))[1] AS newest,
       (array_agg(left(error_message, 200) ORDER BY finished_at DESC))[1] AS newest_says
FROM (SELECT 'run' AS kind, id, status, stop_reason, finished_at, error_message FROM runs
      UNION ALL
      SELECT 'build', id, status, stop_reason, finished_at, error_message FROM builds) AS w
WHERE status IN ('failed', 'canceled') AND finished_at > clock_timestamp() - interval '1 day'
GROUP BY kind, stop_reason ORDER BY times DESC;
