-- The ids of the next page of a feed, as ranges, in order: events of one stream and of a second one beside it, after a
-- cursor, up to an id and to the end of the first stream. A page has `most` events at the most, and about `most_bytes`
-- of payload; so many are taken by arithmetic, without looking at an event.

CREATE OR REPLACE FUNCTION page_ranges_v1(
    of_stream text, beside text, after bigint, upto bigint, most bigint, most_bytes bigint
) RETURNS TABLE (first_id bigint, last_id bigint) LANGUAGE plpgsql STABLE ROWS 4 AS $$
DECLARE
    segment record;
    each    bigint;  -- bytes of one of its events, on average
    count   bigint;
BEGIN
    upto := least(upto, (SELECT s.ended_id FROM streams s WHERE s.stream = of_stream));
    FOR segment IN
        (SELECT s.first_id, s.last_id, s.bytes FROM segments s
         WHERE s.stream = of_stream AND s.last_id > after ORDER BY s.last_id)
        UNION ALL
        (SELECT s.first_id, s.last_id, s.bytes FROM segments s
         WHERE s.stream = beside AND s.last_id > after ORDER BY s.last_id)
        ORDER BY last_id
    LOOP
        EXIT WHEN segment.first_id > upto OR most <= 0 OR most_bytes <= 0;
        each := segment.bytes / (segment.last_id - segment.first_id + 1) + 1;
        first_id := greatest(segment.first_id, after + 1);
        last_id := least(segment.last_id, upto, first_id - 1 + least(most, most_bytes / each + 1));
        count := last_id - first_id + 1;
        most := most - count;
        most_bytes := most_bytes - count * each;
        RETURN NEXT;
    END LOOP;
END $$;

-- The events of a range. The LIMIT, which cuts off nothing, tells the planner that it is short: a join on the range alone
-- was planned as a walk over all events.
CREATE OR REPLACE FUNCTION events_between_v1(first_id bigint, last_id bigint) RETURNS SETOF events
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT * FROM events WHERE id >= first_id AND id <= last_id ORDER BY id LIMIT last_id - first_id + 1
$$;
