-- The log and what guards it. Everything else in this database follows from the table `events`.

CREATE TABLE log (
    log_id     text        PRIMARY KEY DEFAULT 'log_' || replace(gen_random_uuid()::text, '-', ''),
    one_row    boolean     NOT NULL DEFAULT true UNIQUE CHECK (one_row),
    origin     text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE log IS 'Which log this is: cursors of another log are refused.';
INSERT INTO log DEFAULT VALUES;

CREATE TABLE events (
    id          bigint      PRIMARY KEY,
    stream      text        NOT NULL,
    seq         bigint      NOT NULL,
    workspace   text        NOT NULL,
    type        text        NOT NULL,
    bulk        boolean     NOT NULL,
    recorded_at timestamptz NOT NULL,
    data        text        NOT NULL
);
COMMENT ON TABLE events IS 'The log: one row per event, ids dense in commit order. Written by append_events alone, never changed.';
CREATE INDEX events_of_stream ON events (stream, id);
CREATE INDEX control_events_of_stream ON events (stream, id) WHERE NOT bulk;
CREATE INDEX control_events ON events (id) WHERE NOT bulk;

CREATE TABLE streams (
    stream          text   PRIMARY KEY,
    workspace       text   NOT NULL,
    first_id        bigint NOT NULL,
    last_id         bigint NOT NULL,
    last_seq        bigint NOT NULL,
    last_control_id bigint NOT NULL,
    ended_id        bigint,
    bytes           bigint NOT NULL,
    position        bigint NOT NULL  -- bulk events appended under the newest lease; not in leases, where it would be
                                     -- locked by appends and renewals in different orders
) WITH (fillfactor = 50); -- updated by every append: room on the page keeps the update off the index
COMMENT ON TABLE streams IS 'Where each stream begins, stands and ends: bounds every read, answers every expectation.';

CREATE TABLE leases (
    stream       text        PRIMARY KEY,
    token        bigint      NOT NULL,
    holder       text,
    taken_at     timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE leases IS 'Who may write a run or a build. The token only grows.';

CREATE TABLE append_keys (
    key         text        PRIMARY KEY,
    digest      text        NOT NULL,
    first_id    bigint      NOT NULL,
    last_id     bigint      NOT NULL,
    recorded_at timestamptz NOT NULL
);
CREATE INDEX append_keys_by_age ON append_keys (recorded_at);
COMMENT ON TABLE append_keys IS 'Idempotency keys of the last day, with the ids of the append that each stands for.';

CREATE TABLE checkpoints (
    projection text   PRIMARY KEY,
    id         bigint NOT NULL
);
COMMENT ON TABLE checkpoints IS 'How far each projection that is caught up, not inline, has come.';

CREATE FUNCTION refuse_change_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'What happened is corrected by another event.';
END $$;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_v1();
REVOKE UPDATE, DELETE, TRUNCATE ON events FROM PUBLIC, CURRENT_USER;
