-- Of a delayed event that has been due: the time that it was delayed to.
ALTER TABLE pending_events ADD COLUMN deliver_at timestamptz;
