-- Every process that holds a lease: workers, and the projector that is elected. `silent_for` above the length of a lease:
-- it is gone. A worker without work holds none, and is not here; `connections` shows whether it is connected.

SELECT holder, count(*) AS leases, clock_timestamp() - max(heartbeat_at) AS silent_for,
       min(expires_at) < clock_timestamp() AS lost, array_agg(stream ORDER BY stream) AS streams
FROM leases WHERE holder IS NOT NULL
GROUP BY holder ORDER BY holder;
