-- Commit time of the last event that retention has taken from a log; null where it has taken none. Whoever starts to read at that time or
-- before it misses events; whoever starts after it misses none, however long ago the first event is that is left.
ALTER TABLE tenant_heads ADD COLUMN removed_until timestamptz;
-- Of a log that was cut before this step no more is known than that whole days went: all that is gone is from before the day of the first
-- event that is left, or, where none is, was the last of the log.
UPDATE tenant_heads h
   SET removed_until = COALESCE(
           (SELECT (e.day::timestamp AT TIME ZONE 'UTC') - interval '1 microsecond' FROM events e
             WHERE e.tenant_id = h.tenant_id AND e.position >= h.earliest_position ORDER BY e.day, e.position LIMIT 1),
           h.committed_at)
 WHERE h.earliest_position > 1;
