-- Audit records are kept for a time and then forgotten. The server's role still deletes none: it calls the function below, which takes none
-- of the last 30 days, whatever the server is told to ask for. The function runs as the tables' owner, whom the wall binds like anybody: it
-- sees all tenants' records because the engine calls it, by the name of its connections and outside of any tenant's transaction.
CREATE INDEX audit_records_by_age ON audit_records (at);
DO $$
BEGIN
    EXECUTE format($forget$
        CREATE FUNCTION forget_audit_records(before timestamptz, most bigint) RETURNS bigint
            LANGUAGE sql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
            -- A record never changes, so it stays where it is found.
            WITH gone AS (
                DELETE FROM audit_records WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM audit_records WHERE at < LEAST(before, now() - interval '30 days') ORDER BY at LIMIT most))
                RETURNING audit_id)
            SELECT count(*) FROM gone
        $body$
    $forget$, current_schema());
END
$$;
REVOKE ALL ON FUNCTION forget_audit_records(timestamptz, bigint) FROM PUBLIC;
