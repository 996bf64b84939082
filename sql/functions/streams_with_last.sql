-- Each stream with its last event, which its newest segment knows: found by one look into an index, of a stream that is
-- named. (A row that said it would have to be updated by each append.)

CREATE OR REPLACE VIEW streams_with_last AS
SELECT s.stream, s.workspace, s.first_id, newest.last_id, newest.last_seq, s.last_control_id, s.ended_id
FROM streams s CROSS JOIN LATERAL (
    SELECT g.last_id, g.last_seq FROM segments g WHERE g.stream = s.stream ORDER BY g.last_id DESC LIMIT 1) AS newest;
