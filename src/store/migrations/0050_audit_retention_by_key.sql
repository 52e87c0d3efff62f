-- Records are named by their key: where a row lies says which one it is only within one physical table, and a table that is spread by tenant
-- is several. The owner, the bound of 30 days and who may call it stay as they were.
DO $$
BEGIN
    EXECUTE format($forget$
        CREATE OR REPLACE FUNCTION forget_audit_records(before timestamptz, most bigint) RETURNS bigint
            LANGUAGE sql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
            WITH gone AS (
                DELETE FROM audit_records r USING (
                    SELECT tenant_id, audit_id FROM audit_records
                     WHERE at < LEAST(before, now() - interval '30 days') ORDER BY at LIMIT most) AS old
                 WHERE r.tenant_id = old.tenant_id AND r.audit_id = old.audit_id
                   AND r.at < LEAST(before, now() - interval '30 days')
                RETURNING r.audit_id)
            SELECT count(*) FROM gone
        $body$
    $forget$, current_schema());
END
$$;
