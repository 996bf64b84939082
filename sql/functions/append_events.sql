-- The only writer of the log. One call is one transaction: it takes the log's lock, judges each append by itself,
-- numbers what it accepts and writes it. Commit order is id order is visibility order.
--
-- VOLATILE under READ COMMITTED, so that every statement in here sees what was committed before the lock was granted.
-- Nothing may be pipelined behind this call: the lock is held until its transaction ends, whoever the client is.

CREATE OR REPLACE FUNCTION append_events_v2(
    part_append    int[],     -- per part: the append it belongs to, 1.., ascending
    part_stream    text[],
    part_workspace text[],    -- NULL: the stream's own
    part_expect    bigint[],  -- NULL: anything; 0: a new stream; else the id of its newest control event
    part_token     bigint[],  -- NULL: no lease needed
    part_position  bigint[],  -- NULL, or how many bulk events this token has appended before
    part_events    int[],     -- how many events the part has; 0 is a claim: it moves the stream without an event
    part_bytes     bigint[],
    part_control   int[],     -- the place, 1.., of the part's last control event; 0: bulk only
    part_ends      boolean[], -- the part's last event is terminal
    append_key     text[],
    append_digest  text[],
    kind_part      int[],     -- events of one type in a row: the part that they are in, 1..,
    kind_place     int[],     -- how many events of that part come before them,
    kind_events    int[],     -- and how many they are
    kind_type      text[],
    kind_bulk      boolean[],
    payloads       text       -- of all events, a line each
) RETURNS TABLE (outcome text, first_id bigint, last_id bigint, stream text, last_control_id bigint)
-- A custom plan would fold the payloads into a constant array, and walk it from the start for each event: quadratic.
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    head      bigint;
    head_before bigint;
    moment    timestamptz;
    part      int := 1;                     -- the first part of the append at hand
    next_part int;
    append    int;
    event_data text[] := string_to_array(payloads, E'\n');
    part_from int[] := '{}';                -- events of all parts before each
    at_event  int := 0;
    known     record;
    lease     record;
    kept      record;
    moved     boolean := false;             -- whether a control event was accepted
    -- The parts that are accepted, and what becomes of them.
    new_part int[] := '{}'; new_workspace text[] := '{}'; new_id bigint[] := '{}'; new_seq bigint[] := '{}';
    in_workspace text[]; in_seq bigint[]; in_token bigint[]; in_position bigint[]; in_new boolean[];
    done      bigint;                       -- bulk events that were appended under a part's token before
BEGIN
    PERFORM pg_advisory_xact_lock(4702111234474983745);  -- 'ADE_LOG' and a version, as bytes
    SELECT coalesce(max(e.id), 0) INTO head FROM events e;
    head_before := head;
    moment := clock_timestamp();

    FOR append IN 1 .. cardinality(append_key) LOOP
        next_part := part;
        WHILE next_part <= cardinality(part_append) AND part_append[next_part] = append LOOP
            next_part := next_part + 1;
        END LOOP;
        outcome := NULL; first_id := NULL; last_id := NULL; stream := NULL; last_control_id := NULL;

        IF append_key[append] IS NOT NULL THEN
            SELECT * INTO kept FROM append_keys k WHERE k.key = append_key[append];
            IF FOUND THEN
                first_id := kept.first_id; last_id := kept.last_id;
                outcome := CASE WHEN kept.digest = append_digest[append] THEN 'duplicate' ELSE 'key_reused' END;
            END IF;
        END IF;

        in_workspace := '{}'; in_seq := '{}'; in_token := '{}'; in_position := '{}'; in_new := '{}';
        IF outcome IS NULL THEN
            FOR p IN part .. next_part - 1 LOOP
                SELECT s.*, newest.last_seq, newest.token, newest.position INTO known
                FROM streams s LEFT JOIN LATERAL (
                    SELECT * FROM segments g WHERE g.stream = s.stream ORDER BY g.last_id DESC LIMIT 1) AS newest ON true
                WHERE s.stream = part_stream[p];
                in_new[p] := known.stream IS NULL;
                in_workspace[p] := coalesce(known.workspace, part_workspace[p]);
                in_seq[p] := coalesce(known.last_seq, 0);
                in_token[p] := known.token; in_position[p] := known.position;
                IF part_token[p] IS NOT NULL THEN
                    SELECT * INTO lease FROM leases l WHERE l.stream = part_stream[p];
                    IF lease.token IS DISTINCT FROM part_token[p] THEN
                        outcome := 'fenced';
                    ELSE
                        done := CASE WHEN known.token = part_token[p] THEN known.position ELSE 0 END;
                        IF part_position[p] < done THEN
                            outcome := 'duplicate';
                        ELSIF part_position[p] > done THEN
                            outcome := 'conflict';  -- what should come before it has not landed
                        END IF;
                    END IF;
                END IF;
                IF outcome IS NULL AND (known.ended_id IS NOT NULL OR in_workspace[p] IS NULL
                        OR (part_expect[p] = 0 AND known.stream IS NOT NULL)
                        OR (part_events[p] = 0 AND known.stream IS NULL)  -- there is nothing to claim
                        OR part_expect[p] <> coalesce(known.last_control_id, 0)) THEN
                    outcome := 'conflict';
                END IF;
                IF outcome IS NOT NULL THEN
                    stream := part_stream[p]; last_control_id := known.last_control_id;
                    EXIT;
                END IF;
            END LOOP;
        END IF;

        IF outcome IS NULL THEN
            outcome := 'appended';
            first_id := head + 1;
            FOR p IN part .. next_part - 1 LOOP
                last_id := head + part_events[p];
                IF part_events[p] > 0 THEN
                    new_part := new_part || p; new_workspace := new_workspace || in_workspace[p];
                    new_id := new_id || (head + 1); new_seq := new_seq || (in_seq[p] + 1);
                    moved := moved OR part_control[p] > 0;
                    INSERT INTO segments (stream, first_id, last_id, bytes, last_seq, token, position) VALUES (
                        part_stream[p], head + 1, last_id, part_bytes[p], in_seq[p] + part_events[p],
                        CASE WHEN part_position[p] IS NULL THEN in_token[p] ELSE part_token[p] END,
                        coalesce(part_position[p] + part_events[p], in_position[p]));
                    IF in_new[p] THEN
                        INSERT INTO streams (stream, workspace, first_id, last_control_id, ended_id) VALUES (
                            part_stream[p], in_workspace[p], head + 1,
                            CASE WHEN part_control[p] > 0 THEN head + part_control[p] ELSE 0 END,
                            CASE WHEN part_ends[p] THEN last_id END);
                    ELSIF part_control[p] > 0 OR part_ends[p] THEN
                        UPDATE streams s SET
                            last_control_id = greatest(s.last_control_id, CASE WHEN part_control[p] > 0 THEN head + part_control[p] ELSE 0 END),
                            ended_id = CASE WHEN part_ends[p] THEN last_id END
                        WHERE s.stream = part_stream[p];
                    END IF;
                END IF;
                head := last_id;
            END LOOP;
            FOR p IN part .. next_part - 1 LOOP
                IF part_events[p] = 0 THEN
                    UPDATE streams s SET last_control_id = head WHERE s.stream = part_stream[p];
                END IF;
            END LOOP;
            IF append_key[append] IS NOT NULL THEN
                INSERT INTO append_keys VALUES (append_key[append], append_digest[append], first_id, last_id, moment);
            END IF;
        END IF;
        FOR p IN part .. next_part - 1 LOOP
            part_from := part_from || at_event;
            at_event := at_event + part_events[p];
        END LOOP;
        part := next_part;
        RETURN NEXT;
    END LOOP;

    IF at_event <> cardinality(event_data) THEN
        RAISE EXCEPTION 'there are % payloads for % events: a payload is one line', cardinality(event_data), at_event;
    END IF;
    INSERT INTO events (id, stream, seq, workspace, type, bulk, recorded_at, data)
    SELECT new.id + n, part_stream[part], new.seq + n, new.workspace, kind.type, kind.bulk, moment,
           event_data[part_from[part] + n + 1]
    FROM unnest(new_part, new_workspace, new_id, new_seq) AS new (part, workspace, id, seq)
    JOIN unnest(kind_part, kind_place, kind_events, kind_type, kind_bulk) AS kind (part, place, events, type, bulk) USING (part),
         generate_series(kind.place, kind.place + kind.events - 1) AS n;
    IF moved THEN
        PERFORM project_control_v1(head_before, head);
    END IF;
END $$;
