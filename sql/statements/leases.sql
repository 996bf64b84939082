-- take_lease: the lease is the holder's, under a token greater than all before, if nobody else's lives.
SELECT token FROM take_lease_v1(%(stream)s, %(holder)s, %(seconds)s);

-- renew_leases: the holder's leases live on; those that are missing in the answer were lost.
UPDATE leases SET heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
FROM unnest(%(streams)s::text[], %(tokens)s::bigint[]) AS held (stream, token)
WHERE leases.stream = held.stream AND leases.token = held.token
RETURNING leases.stream;

-- drop_lease: the stream is free for the next one at once; where it has ended, the lease is gone.
WITH ended AS (
    DELETE FROM leases USING streams
    WHERE leases.stream = %(stream)s AND leases.token = %(token)s
      AND streams.stream = leases.stream AND streams.ended_id IS NOT NULL
    RETURNING leases.stream
)
UPDATE leases SET holder = NULL, expires_at = clock_timestamp()
WHERE stream = %(stream)s AND token = %(token)s AND NOT EXISTS (SELECT FROM ended);
