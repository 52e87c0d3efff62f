-- Of a PRE event whose listeners are asked: the highest number of an attempt beyond the first that was begun. Whoever takes the event
-- over goes on above it.
ALTER TABLE pending_events ADD COLUMN attempted integer NOT NULL DEFAULT 0;
