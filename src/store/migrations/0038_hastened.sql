-- When a caller asked for a retry of an invocation that was due already, and so may be running: where that attempt fails, it is due then.
ALTER TABLE deferred_invocations ADD COLUMN hastened_at timestamptz;
