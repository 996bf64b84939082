-- Erases the payloads of bulk events: in the log, where their hash takes their place, and in the tables of lines. An
-- `event.redacted` (its payload is `says`) is appended in the same transaction: without it the trigger on events
-- refuses. SECURITY DEFINER: EXECUTE on this function is all that a role needs, and nobody has it by default.
--
-- Outcomes: `redacted`, with the id of that event; `nothing`, all of them were redacted before; `rebuilding`, a rebuild
-- is copying lines at this moment.
CREATE OR REPLACE FUNCTION redact_events_v1(of_stream text, ids bigint[], says text)
RETURNS TABLE (outcome text, redacted_by bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(4702111234474983747) THEN  -- which a rebuild holds alone
        outcome := 'rebuilding';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Before the log's lock: the projector holds these while it copies lines. It has copied, or will read what is left.
    PERFORM FROM checkpoints c WHERE c.projection IN ('run_logs', 'build_logs') ORDER BY c.projection FOR UPDATE;
    -- Before the first look: of two who redact the same event, the second finds it done.
    PERFORM pg_advisory_xact_lock(4702111234474983745);
    SELECT array_agg(e.id) INTO ids FROM events e
    WHERE e.stream = of_stream AND e.id = ANY (ids) AND e.data !~ '^\{"redacted":"[0-9a-f]{64}"\}$';
    IF ids IS NULL THEN
        outcome := 'nothing';
        RETURN NEXT;
        RETURN;
    END IF;
    redacted_by := append_fact_v1('event.redacted', says);
    UPDATE events e SET data = '{"redacted":"' || encode(sha256(convert_to(e.data, 'UTF8')), 'hex') || '"}'
    WHERE e.id = ANY (ids);
    DELETE FROM run_logs l WHERE l.id = ANY (ids);  -- as a rebuild leaves them: what is left has no message
    DELETE FROM build_logs l WHERE l.id = ANY (ids);
    outcome := 'redacted';
    RETURN NEXT;
END $$;
REVOKE EXECUTE ON FUNCTION redact_events_v1 FROM PUBLIC;
