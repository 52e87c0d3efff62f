-- Every owner that may have started an attempt that nothing is recorded of raises the number of the next one: when the leases of
-- those that did not give the shard back ended, the newest first.
ALTER TABLE shard_leases ADD COLUMN unclean_ends timestamptz[] NOT NULL DEFAULT '{}';
