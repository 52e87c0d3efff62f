-- The log's position when an event type was retired: its events stand at or before it. Of one that was retired before this was noted, the
-- time alone says when it is purged.
ALTER TABLE event_types ADD COLUMN deleted_position bigint;
