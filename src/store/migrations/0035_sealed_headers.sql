-- Headers that a webhook carries are credentials, mostly: sealed like its signing secrets, for its tenant and subscription, as JSON pairs.
-- What was saved before stays in webhook_headers until it is saved again, or until `carillon reseal`.
ALTER TABLE subscriptions ADD COLUMN webhook_headers_sealed bytea;
