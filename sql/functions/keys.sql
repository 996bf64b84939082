-- Keys, each change in one transaction with the event that says whose doing it was.

CREATE OR REPLACE FUNCTION make_key_v1(
    new_id text, of_name text, hash bytea, of_role text, in_workspaces text[], until timestamptz, says text
) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO api_keys (id, name, sha256, role, workspaces, expires_at)
    VALUES (new_id, of_name, hash, of_role, in_workspaces, until);
    RETURN append_fact_v1('key.created', says);
END $$;

-- NULL where there is no such key, or it was revoked before. A session that is being opened with the key holds its row,
-- so that it is found here, or is refused (`open_session`).
CREATE OR REPLACE FUNCTION revoke_key_v1(old_id text, says text) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = old_id AND parent IS NULL AND revoked_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE api_keys SET revoked_at = clock_timestamp() WHERE parent = old_id;
    RETURN append_fact_v1('key.revoked', says);
END $$;
