-- run_stats: of the runs that were created in a time: how they stand and ended, how long the succeeded ones took, also
-- by the busiest configs, and the most frequent errors. Queued are all that are, whenever they were created.
WITH recent AS NOT MATERIALIZED (
    SELECT r.* FROM runs r
    WHERE (%(workspace_id)s::text IS NULL OR r.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR r.workspace_id = ANY (%(workspaces)s))
      AND r.created_at >= to_timestamp(%(created_after)s)
      AND (%(created_before)s::float8 IS NULL OR r.created_at < to_timestamp(%(created_before)s))
), ended AS (
    SELECT config_id, status, stop_reason, count(*) AS n FROM recent GROUP BY config_id, status, stop_reason
), busiest AS (
    SELECT config_id, sum(n) AS runs, coalesce(sum(n) FILTER (WHERE status = 'failed'), 0) AS failed
    FROM ended GROUP BY config_id ORDER BY runs DESC, config_id LIMIT %(most)s
), errors AS (
    SELECT stop_reason, error_message, count(*) AS n, max(id) AS newest FROM recent
    WHERE status IN ('failed', 'canceled') AND status = 'failed'  -- the first is what the index says
    GROUP BY stop_reason, error_message ORDER BY n DESC, newest DESC LIMIT %(most)s
), queued AS (
    SELECT waiting_for, count(*) AS n, min(created_at) AS oldest FROM runs r
    WHERE status = 'queued' AND (%(workspace_id)s::text IS NULL OR r.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR r.workspace_id = ANY (%(workspaces)s)) GROUP BY waiting_for)
SELECT (SELECT coalesce(sum(n), 0)::bigint FROM ended) AS total,
       (SELECT json_object_agg(status, n) FROM (SELECT status, sum(n) AS n FROM ended GROUP BY status) AS s) AS by_status,
       (SELECT json_object_agg(stop_reason, n) FROM (
            SELECT stop_reason, sum(n) AS n FROM ended WHERE stop_reason IS NOT NULL GROUP BY stop_reason) AS s) AS by_stop_reason,
       (SELECT percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY duration_ms) FROM recent
        WHERE status = 'succeeded') AS took,
       (SELECT json_agg(json_build_object('config_id', b.config_id, 'name', c.name, 'total', b.runs, 'failed', b.failed,
                                          'took', t.took) ORDER BY b.runs DESC, b.config_id)
        FROM busiest b LEFT JOIN configs c ON c.id = b.config_id CROSS JOIN LATERAL (
            SELECT percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.duration_ms) AS took
            FROM recent r WHERE r.config_id = b.config_id AND r.status = 'succeeded') AS t) AS configs,
       (SELECT json_agg(json_build_object('stop_reason', stop_reason, 'error_message', error_message, 'count', n,
                                          'newest_id', newest) ORDER BY n DESC, newest DESC) FROM errors) AS errors,
       (SELECT coalesce(sum(n), 0)::bigint FROM queued) AS queued,
       (SELECT extract(epoch FROM clock_timestamp() - min(oldest))::float8 FROM queued) AS oldest_s,
       (SELECT json_object_agg(waiting_for, n) FROM queued WHERE waiting_for IS NOT NULL) AS waiting_for;

-- build_stats: the same of builds, without what they do not have.
WITH recent AS NOT MATERIALIZED (
    SELECT b.* FROM builds b
    WHERE (%(workspace_id)s::text IS NULL OR b.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR b.workspace_id = ANY (%(workspaces)s))
      AND b.created_at >= to_timestamp(%(created_after)s)
      AND (%(created_before)s::float8 IS NULL OR b.created_at < to_timestamp(%(created_before)s))
), ended AS (SELECT status, stop_reason, count(*) AS n FROM recent GROUP BY status, stop_reason
), errors AS (
    SELECT stop_reason, error_message, count(*) AS n, max(id) AS newest FROM recent WHERE status = 'failed'
    GROUP BY stop_reason, error_message ORDER BY n DESC, newest DESC LIMIT %(most)s
), queued AS (
    SELECT count(*) AS n, min(created_at) AS oldest FROM builds b
    WHERE status = 'queued' AND (%(workspace_id)s::text IS NULL OR b.workspace_id = %(workspace_id)s)
      AND (%(workspaces)s::text[] IS NULL OR b.workspace_id = ANY (%(workspaces)s)))
SELECT (SELECT coalesce(sum(n), 0)::bigint FROM ended) AS total,
       (SELECT json_object_agg(status, n) FROM (SELECT status, sum(n) AS n FROM ended GROUP BY status) AS s) AS by_status,
       (SELECT json_object_agg(stop_reason, n) FROM (
            SELECT stop_reason, sum(n) AS n FROM ended WHERE stop_reason IS NOT NULL GROUP BY stop_reason) AS s) AS by_stop_reason,
       (SELECT percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY duration_ms) FROM recent
        WHERE status = 'active') AS took,
       (SELECT json_agg(json_build_object('stop_reason', stop_reason, 'error_message', error_message, 'count', n,
                                          'newest_id', newest) ORDER BY n DESC, newest DESC) FROM errors) AS errors,
       (SELECT n FROM queued) AS queued,
       (SELECT extract(epoch FROM clock_timestamp() - oldest)::float8 FROM queued) AS oldest_s;
