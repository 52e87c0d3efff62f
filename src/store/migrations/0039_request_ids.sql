-- A request id is one call's, whichever its RPC is: of ids that several RPCs have used, the newest one stays.
LOCK TABLE request_ids;
DELETE FROM request_ids r USING request_ids n
 WHERE n.tenant_id = r.tenant_id AND n.request_id = r.request_id AND (n.expires_at, n.method) > (r.expires_at, r.method);
ALTER TABLE request_ids DROP CONSTRAINT request_ids_pk, ADD CONSTRAINT request_ids_pk PRIMARY KEY (tenant_id, request_id);
