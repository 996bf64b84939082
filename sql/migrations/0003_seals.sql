-- The chain over the log, and the one change that an event can suffer: its payload is erased.

CREATE TABLE seals (
    upto       bigint      PRIMARY KEY,
    after      bigint      NOT NULL UNIQUE,  -- the seal before it: of two who seal at once, one is refused
    chain_hash bytea       NOT NULL CHECK (octet_length(chain_hash) = 32),
    marks      bytea       NOT NULL,
    sealed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (upto - after BETWEEN 1 AND 1024 AND octet_length(marks) = 8 * (upto - after))
);
COMMENT ON TABLE seals IS 'The hash chain over events: each seal covers the ids after..upto, with 8 bytes of every event''s hash.';
CREATE TRIGGER seals_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON seals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_v1();
REVOKE UPDATE, DELETE, TRUNCATE ON seals FROM PUBLIC, CURRENT_USER;

-- An update passes if it replaces the payload of a bulk event by its hash, and an `event.redacted` in the log says so.
-- There is no switch to turn: whoever may update still cannot do anything else.
CREATE FUNCTION refuse_all_but_redaction_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.bulk
        AND (NEW.id, NEW.stream, NEW.seq, NEW.workspace, NEW.type, NEW.bulk, NEW.recorded_at)
          = (OLD.id, OLD.stream, OLD.seq, OLD.workspace, OLD.type, OLD.bulk, OLD.recorded_at)
        AND NEW.data = '{"redacted":"' || encode(sha256(convert_to(OLD.data, 'UTF8')), 'hex') || '"}'
        AND OLD.data !~ '^\{"redacted":"[0-9a-f]{64}"\}$'  -- the hash of a hash would prove nothing
        AND EXISTS (SELECT FROM events r
                    WHERE r.stream = 'system_log' AND NOT r.bulk AND r.type = 'event.redacted' AND r.id > OLD.id
                      AND r.data::jsonb -> 'event_ids' @> to_jsonb(OLD.id)) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation', HINT = 'What happened is corrected by another event.';
END $$;
DROP TRIGGER events_are_never_changed ON events;
CREATE TRIGGER events_are_never_changed BEFORE DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_v1();
CREATE TRIGGER events_are_only_redacted BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_all_but_redaction_v1();
GRANT UPDATE (data) ON events TO CURRENT_USER;

-- Nothing is planned by what payloads hold, and a sample of them would outlive their erasure.
ALTER TABLE events ALTER COLUMN data SET STATISTICS 0;
