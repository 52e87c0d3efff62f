-- Commit time of the last event that retention has taken from a log; null where it has taken none. Whoever starts to read at that time or
-- before it misses events; whoever starts after it misses none, however long ago the first event is that is left.
-- It is true for as long as the log begins at `removed_before`. A cut before this step, or by a replica of the release before it while the
-- others are replaced, moves `earliest_position` alone: of such a log no more is known than that whole days went.
ALTER TABLE tenant_heads
    ADD COLUMN removed_until  timestamptz,
    ADD COLUMN removed_before bigint      NOT NULL DEFAULT 1;
