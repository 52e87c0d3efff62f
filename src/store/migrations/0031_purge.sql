-- Finds what was deleted long ago, without the rows that live.
CREATE INDEX subscriptions_deleted ON subscriptions (deleted_at, tenant_id) WHERE state = 3;
CREATE INDEX event_types_deleted ON event_types (deleted_at, tenant_id) WHERE deleted_at IS NOT NULL;
