-- The second wall between tenants, for the day on which a statement loses its own predicate: every tenant table has forced
-- row-level security. The server's role owns nothing, so that it is bound by it; what only an owner may do, the server does by the
-- functions below.

-- A transaction that names a tenant (SET LOCAL carillon.tenant) sees and writes rows of that tenant alone. One that names none is let
-- through where its connection calls itself 'carillon': that is the engine, which works across tenants, and releases from before
-- the wall. Anybody else sees nothing. The sub-selects are evaluated once a statement.
--
-- Migrations that make a tenant table end with CALL raise_tenant_wall().
CREATE PROCEDURE raise_tenant_wall() LANGUAGE plpgsql AS $$
DECLARE
    tenant_table regclass;
BEGIN
    FOR tenant_table IN
        SELECT c.oid::regclass FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
         WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant_wall')
         -- Each is locked until the step is committed. Changes begin with the head and the cursor, so whoever waits for these
         -- two holds nothing that the step still needs.
         ORDER BY c.relname <> 'tenant_heads', c.relname <> 'dispatch_cursors', c.relname
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', tenant_table);
        EXECUTE format(
            $policy$CREATE POLICY tenant_wall ON %s USING (
                (SELECT NULLIF(current_setting('carillon.tenant', true), '') IS NULL
                    AND current_setting('application_name') = 'carillon')
                OR tenant_id = (SELECT NULLIF(current_setting('carillon.tenant', true), '')::uuid))$policy$,
            tenant_table);
    END LOOP;
END
$$;
CALL raise_tenant_wall();

-- Only the owner of a table makes and drops partitions of it. The search path is that of the schema the tables are in, and nothing a
-- caller says; nobody may call them but those whom `carillon migrate` lets.
DO $$
BEGIN
    EXECUTE format($make$
        CREATE FUNCTION make_partition(parent text, day date) RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
        DECLARE
            partition text := parent || to_char(day, '"_"YYYYMMDD');
        BEGIN
            -- Made aside and then attached: CREATE TABLE ... PARTITION OF would lock the whole table against everybody, and so would
            -- wait behind any long read with every publish waiting behind it.
            EXECUTE format('CREATE TABLE %%I (LIKE %%I INCLUDING ALL)', partition, parent);
            EXECUTE format('ALTER TABLE %%I ATTACH PARTITION %%I FOR VALUES FROM (%%L) TO (%%L)', parent, partition, day, day + 1);
        END
        $body$
    $make$, current_schema());
    -- Days that are not over are never dropped, whoever asks.
    EXECUTE format($drop$
        CREATE FUNCTION drop_partition(parent text, day date) RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
        DECLARE
            partition regclass;
        BEGIN
            SELECT i.inhrelid::regclass INTO partition FROM pg_catalog.pg_inherits i
              JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
             WHERE p.relname = parent AND p.relkind = 'p' AND p.relnamespace = current_schema()::regnamespace
               AND c.relname = parent || to_char(day, '"_"YYYYMMDD')
               AND day < (clock_timestamp() AT TIME ZONE 'UTC')::date;
            IF partition IS NOT NULL THEN
                EXECUTE format('DROP TABLE %%s', partition);
            END IF;
        END
        $body$
    $drop$, current_schema());
END
$$;
REVOKE ALL ON PROCEDURE raise_tenant_wall() FROM PUBLIC;
REVOKE ALL ON FUNCTION make_partition(text, date) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_partition(text, date) FROM PUBLIC;
