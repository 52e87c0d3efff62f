-- What is due of each type by itself: one with many events in front of the others' hides none of theirs.
CREATE INDEX pending_events_by_type_due ON pending_events (tenant_id, event_type, due_at, event_id) WHERE state = 1;
