-- Where the events of a stream lie. What one append adds to one stream has ids without a gap, so one row here stands for
-- all of them; an index entry for each event was a third of the cost of a flood.

CREATE TABLE segments (
    stream   text   NOT NULL,
    first_id bigint NOT NULL,
    last_id  bigint NOT NULL,
    bytes    bigint NOT NULL,  -- of the payloads as they were appended: how much of it a reader takes at once
    PRIMARY KEY (stream, last_id) INCLUDE (first_id, bytes)
);
COMMENT ON TABLE segments IS 'Unbroken ranges of ids of one stream, one per append: they lead a reader to the events of a stream.';
INSERT INTO segments
SELECT stream, min(id), max(id), sum(octet_length(data))
FROM (SELECT stream, id, data, id - row_number() OVER (PARTITION BY stream ORDER BY id) AS island FROM events) AS e
GROUP BY stream, island, id / 1000;

DROP INDEX events_of_stream;
-- For people, who write WHERE stream = '…': some kilobytes per million events, and next to nothing for an append.
CREATE INDEX events_near_stream ON events USING brin (stream text_bloom_ops) WITH (autosummarize = on);
