-- Who may ask. Not a projection: the log holds the facts about keys, and never what they are recognised by.
CREATE TABLE api_keys (
    id           text        PRIMARY KEY,
    parent       text,
    name         text        NOT NULL,
    sha256       bytea       NOT NULL CHECK (octet_length(sha256) = 32),
    role         text        NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    workspaces   text[]      NOT NULL CHECK (cardinality(workspaces) > 0),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX sessions_of_key ON api_keys (parent) WHERE parent IS NOT NULL;
COMMENT ON TABLE api_keys IS 'Keys of the API, and sessions of browsers, which are keys that have a parent and end with it. {*} is every workspace.';
