-- Signing secrets that a rotation has given an end: few among those that have none.
CREATE INDEX webhook_secrets_by_end ON webhook_secrets (expires_at) WHERE expires_at IS NOT NULL;
