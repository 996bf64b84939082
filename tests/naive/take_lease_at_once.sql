-- A lease that does not wait for the log: an append that was judged under the old token is still in flight when the new
-- one is handed out, so its events appear behind the back of the new holder.

CREATE FUNCTION naive_take_lease(wanted text) RETURNS bigint LANGUAGE sql AS $$
    UPDATE leases SET token = token + 1 WHERE stream = wanted AND expires_at < clock_timestamp() RETURNING token
$$;
