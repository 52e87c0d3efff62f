//! The wall between tenants as Postgres keeps it: for every tenant table there is, asked of the catalogue, so that a table that is
//! added without its policy fails here.

use super::Database;
use crate::domain::ids::TenantId;
use crate::store::connect::{self, ConnectError};
use crate::store::role::RoleError;
use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::fs;
use std::path::Path;
use uuid::Uuid;

const A: TenantId = TenantId(Uuid::from_u128(0xa));
const B: TenantId = TenantId(Uuid::from_u128(0xb));

/// Values of columns that no value of their type alone would do for; the rest follows from the type.
const VALUES: &[(&str, &str)] = &[
    ("slug", "'t' || replace('{t}', '-', '')"),
    ("name", "'CUSTOM_' || '{t}'"),
    ("secret_hash", "decode(repeat('00', 32), 'hex')"),
    ("timeout_ms", "10"),
    ("state", "3"),
];

/// Every table with a tenant, and the statement that adds a row of one, `{t}` standing for it.
async fn tenant_tables(superuser: &mut PgConnection) -> Vec<(String, String)> {
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_class c
           JOIN pg_attribute t ON t.attrelid = c.oid AND t.attname = 'tenant_id' AND NOT t.attisdropped
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef
          WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          ORDER BY c.relname, a.attnum",
    )
    .fetch_all(superuser)
    .await
    .expect("a catalogue");
    let mut tables: Vec<(String, Vec<String>, Vec<String>)> = Vec::new();
    for (table, column, kind) in columns {
        let known = VALUES.iter().find(|(name, _)| *name == column).map(|(_, value)| *value);
        let value = known.unwrap_or(match kind.as_str() {
            "uuid" => "'{t}'",
            "text" => "'{t}'::text",
            "bytea" => "'\\x00'",
            "date" => "(now() AT TIME ZONE 'UTC')::date",
            "timestamp with time zone" => "now()",
            "boolean" => "false",
            array if array.ends_with("[]") => "'{}'",
            _ => "1",
        });
        match tables.last_mut().filter(|last| last.0 == table) {
            Some((_, columns, values)) => {
                columns.push(column);
                values.push(value.to_owned());
            }
            None => tables.push((table, vec![column], vec![value.to_owned()])),
        }
    }
    // What others refer to comes first.
    tables.sort_by_key(|(table, ..)| table != "tenants");
    let insert = |(table, columns, values): (String, Vec<String>, Vec<String>)| {
        let sql = format!("INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), values.join(", "));
        (table, sql)
    };
    tables.into_iter().map(insert).collect()
}

fn of(sql: &str, tenant: TenantId) -> AssertSqlSafe<String> {
    AssertSqlSafe(sql.replace("{t}", &tenant.0.to_string()))
}

/// Runs a statement and takes it back: how many rows, or the SQLSTATE.
async fn tried(connection: &mut PgConnection, sql: AssertSqlSafe<String>) -> Result<u64, String> {
    let mut within = connection.begin().await.expect("a transaction");
    let done = within.execute(sql).await;
    within.rollback().await.expect("rolled back");
    match done {
        Ok(done) => Ok(done.rows_affected()),
        Err(error) => Err(error.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned()),
    }
}

async fn seen(connection: &mut PgConnection, table: &str) -> Vec<Uuid> {
    let sql = format!("SELECT DISTINCT tenant_id FROM {table} ORDER BY tenant_id");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(connection)
        .await
        .unwrap_or_else(|error| panic!("{table}: {error}"))
}

const DENIED: &str = "42501";
const NOBODY: [Uuid; 0] = [];

/// A connection by that name, which has named no tenant.
async fn connected(url: &str, name: &str) -> PgConnection {
    PgConnection::connect(&format!("{url}&application_name={name}")).await.expect("Postgres answers")
}

async fn names(connection: &mut PgConnection, tenant: TenantId) {
    connection.execute(of("SET carillon.tenant = '{t}'", tenant)).await.expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_table_shows_or_takes_rows_of_another_tenant_than_the_one_that_is_named() {
    let database = Database::new().await;
    let mut superuser = database.connection().await;
    let tables = tenant_tables(&mut superuser).await;
    assert!(tables.len() >= 24, "{tables:?}");
    for (table, insert) in &tables {
        for tenant in [A, B] {
            let added = superuser.execute(of(insert, tenant)).await;
            added.unwrap_or_else(|error| panic!("{table} needs a value that fits in VALUES: {error}"));
        }
    }
    let url = database.postgres.server_url();
    let mut stranger = connected(&url, "psql").await;
    let mut named = connected(&url, "psql").await;
    names(&mut named, A).await;
    // Naming a tenant closes the engine's own way.
    let mut engine_named = connected(&url, "carillon").await;
    names(&mut engine_named, A).await;
    let mut engine = connected(&url, "carillon").await;
    let mut owner = connected(&database.postgres.url(), "psql").await;
    for (table, insert) in &tables {
        assert_eq!(seen(&mut engine, table).await, [A.0, B.0], "{table}: the engine sees all");
        assert_eq!(seen(&mut stranger, table).await, NOBODY, "{table}: who names no tenant sees nothing");
        assert_eq!(seen(&mut owner, table).await, NOBODY, "{table}: not even the owner");
        assert_eq!(tried(&mut stranger, of(insert, A)).await, Err(DENIED.to_owned()), "{table}: nor writes");
        for connection in [&mut named, &mut engine_named] {
            assert_eq!(seen(connection, table).await, [A.0], "{table}: one's own alone");
            assert_eq!(tried(connection, of(insert, B)).await, Err(DENIED.to_owned()), "{table}: not into another's");
            let all = format!("UPDATE {table} SET tenant_id = tenant_id");
            let theirs = format!("UPDATE {table} SET tenant_id = '{{t}}'");
            let changed = tried(connection, of(&all, A)).await;
            // What is never changed may not be by anybody: its privilege is not granted.
            assert!(changed == Ok(1) || changed == Err(DENIED.to_owned()), "{table}: {changed:?}");
            assert_eq!(tried(connection, of(&theirs, B)).await, Err(DENIED.to_owned()), "{table}: not handed over");
            let gone = tried(connection, of(&format!("DELETE FROM {table}"), A)).await;
            let referred_to = Err("23503".to_owned());
            assert!(gone == Ok(1) || gone == Err(DENIED.to_owned()) || gone == referred_to, "{table}: {gone:?}");
        }
        for sql in ["UPDATE {table} SET tenant_id = tenant_id", "DELETE FROM {table}"] {
            let done = tried(&mut stranger, AssertSqlSafe(sql.replace("{table}", table))).await;
            assert!(done == Ok(0) || done == Err(DENIED.to_owned()), "{table}: {done:?}");
        }
    }
    // Nor past a table, by one of its days.
    let days: Vec<String> =
        sqlx::query_scalar("SELECT relname::text FROM pg_class WHERE relispartition AND relkind = 'r'")
            .fetch_all(&mut superuser)
            .await
            .expect("a catalogue");
    assert!(days.len() >= 3, "{days:?}");
    for day in days {
        let read = tried(&mut engine, AssertSqlSafe(format!("SELECT FROM {day}"))).await;
        assert_eq!(read, Err(DENIED.to_owned()), "{day}");
    }
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_role_makes_and_drops_days_and_nothing_else() {
    let database = Database::new().await;
    let mut server = connected(&database.postgres.server_url(), "carillon").await;
    let made = tried(&mut server, AssertSqlSafe("SELECT make_partition('events', '2001-01-01')".to_owned())).await;
    assert_eq!(made, Ok(1));
    for (sql, code) in [
        ("DROP TABLE events", DENIED),
        ("ALTER TABLE events DISABLE ROW LEVEL SECURITY", DENIED),
        ("ALTER TABLE events NO FORCE ROW LEVEL SECURITY", DENIED),
        ("DROP POLICY tenant_wall ON events", DENIED),
        ("TRUNCATE events", DENIED),
        ("CALL raise_tenant_wall()", DENIED),
        ("DELETE FROM audit_records", DENIED),
        // Neither a table without days nor one of another schema.
        ("SELECT make_partition('tenants', '2001-01-01')", "42P17"),
        ("SELECT make_partition('pg_catalog.pg_class', '2001-01-01')", "42P01"),
        ("SELECT make_partition('x; DROP TABLE events', '2001-01-01')", "42P01"),
    ] {
        assert_eq!(tried(&mut server, AssertSqlSafe(sql.to_owned())).await, Err(code.to_owned()), "{sql}");
    }
    // A day that is not over stays, and so does what only looks like a day.
    for sql in [
        "SELECT drop_partition('events', (now() AT TIME ZONE 'UTC')::date)",
        "SELECT drop_partition('tenants', '2001-01-01')",
        "SELECT drop_partition('events', '1999-01-01')",
    ] {
        server.execute(AssertSqlSafe(sql.to_owned())).await.expect("nothing happens");
    }
    let today = database.store.now().date_naive().format("events_%Y%m%d").to_string();
    let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(today)
        .fetch_one(&mut database.connection().await)
        .await
        .expect("a catalogue");
    assert!(there, "today's events are gone");
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_the_wall_does_not_hold_back_is_refused_and_so_is_a_wall_that_is_down() {
    let database = Database::new().await;
    let mut superuser = database.connection().await;
    let refusal = async |url: String| match connect::open(&Database::config(&url)).await {
        Err(ConnectError::Role(error)) => error,
        other => panic!("{:?}", other.map(drop)),
    };
    let server = database.postgres.server_url();
    let as_role = |role: &str| server.replacen("//carillon_server@", &format!("//{role}@"), 1);
    superuser
        .execute(
            "CREATE ROLE passing LOGIN BYPASSRLS; CREATE ROLE heir LOGIN IN ROLE carillon; CREATE ROLE nobody LOGIN",
        )
        .await
        .expect("roles");
    for role in ["carillon_owner", "passing"] {
        let error = refusal(as_role(role)).await;
        assert!(matches!(&error, RoleError::Unbound { role: named } if named == role), "{error}");
    }
    for role in ["carillon", "heir"] {
        let error = refusal(as_role(role)).await;
        assert!(matches!(&error, RoleError::Owner { role: named, .. } if named == role), "{error}");
        assert!(error.to_string().contains("carillon migrate --grant-to carillon_server"), "{error}");
    }
    let error = refusal(as_role("nobody")).await;
    assert!(error.to_string().contains("`carillon migrate --grant-to nobody`"), "{error}");
    // Let in once, a role stays so; one that does not exist is named.
    let owner = Database::config(&database.postgres.url());
    let migrated = connect::migrate(&owner, &["nobody".to_owned()]).await.expect("granted");
    assert_eq!((migrated.applied, migrated.granted), (0, vec!["carillon_server".to_owned(), "nobody".to_owned()]));
    connect::open(&Database::config(&as_role("nobody"))).await.expect("it may now").close().await;
    let error = connect::migrate(&owner, &["absent".to_owned()]).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ConnectError::Role(RoleError::Missing { .. })), "{error}");
    for (down, up) in [
        ("DISABLE ROW LEVEL SECURITY", "ENABLE ROW LEVEL SECURITY"),
        ("NO FORCE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"),
    ] {
        superuser.execute(AssertSqlSafe(format!("ALTER TABLE outcomes {down}"))).await.expect("lifted");
        let error = refusal(server.clone()).await;
        assert!(matches!(&error, RoleError::WallDown { table } if table == "outcomes"), "{error}");
        superuser.execute(AssertSqlSafe(format!("ALTER TABLE outcomes {up}"))).await.expect("raised");
    }
    superuser.execute("DROP POLICY tenant_wall ON outcomes").await.expect("dropped");
    let error = refusal(server.clone()).await;
    assert!(matches!(&error, RoleError::WallDown { table } if table == "outcomes"), "{error}");
    superuser.execute("CALL raise_tenant_wall()").await.expect("raised");
    connect::open(&Database::config(&server)).await.expect("all is well").close().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_carries_a_setting_or_a_tenant_out_of_its_transaction() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let config = connect::Config { connections_max: 1, ..Database::config(&database.postgres.server_url()) };
    let store = connect::open(&config).await.expect("Postgres answers");
    let changed =
        "SELECT name::text || '=' || setting FROM pg_settings WHERE source = 'session' ORDER BY name LIMIT 100";
    let look = async || {
        let changed: Vec<String> = sqlx::query_scalar(changed).fetch_all(store.engine()).await.expect("readable");
        let tenant: Option<String> = sqlx::query_scalar("SELECT NULLIF(current_setting('carillon.tenant', true), '')")
            .fetch_one(store.engine())
            .await
            .expect("readable");
        (changed, tenant)
    };
    // What the connection starts with is a client's; nothing is set by a statement.
    assert_eq!(look().await, (Vec::new(), None));
    store.head(tenant).await.expect("readable").expect("it exists");
    store.app_by_slug(tenant, "absent").await.expect("readable");
    let broken: Result<(i32,), _> = sqlx::query_as("SELECT 1 / 0").fetch_one(store.as_tenant(tenant)).await;
    broken.expect_err("it divides by zero");
    store.retain(store.now().date_naive()).await.expect("answered");
    assert_eq!(look().await, (Vec::new(), None));
    store.close().await;
    database.end().await;
}

/// The files whose statements are on the engine's side of the wall, and how many. None of them answers a tenant's caller with what it
/// reads, but by what it makes of it; and none reads events of one tenant for its receivers. Everything else names its tenant.
const ENGINE: &[(&str, usize)] = &[
    ("chain_budgets.rs", 3),
    ("connect.rs", 4),
    ("credentials.rs", 2),
    ("dispatch.rs", 3),
    ("dispatch/waiting.rs", 2),
    ("expired.rs", 4),
    ("health.rs", 4),
    ("leases.rs", 7),
    ("log_tail.rs", 1),
    ("mod.rs", 1),
    ("notify.rs", 3),
    ("overwrite.rs", 2),
    ("partitions.rs", 2),
    ("pending.rs", 4),
    ("pending/commit.rs", 1),
    ("pending/due.rs", 4),
    ("pending/verdicts.rs", 4),
    ("publish.rs", 2),
    ("purge.rs", 3),
    ("quotas.rs", 2),
    ("rates.rs", 3),
    ("replays.rs", 1),
    ("restores.rs", 4),
    ("retention.rs", 5),
    ("settings.rs", 3),
    ("settle.rs", 1),
    ("subscriptions/reseal.rs", 4),
    ("tenants.rs", 3),
    ("watches/held.rs", 3),
];

#[test]
fn only_the_engines_statements_step_around_the_wall() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("it is below").to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !name.contains("tests") {
                let statements = fs::read_to_string(&path).expect("text").matches(".engine()").count();
                found.extend((statements > 0).then_some((name, statements)));
            }
        }
    }
    found.sort();
    let found: Vec<(&str, usize)> = found.iter().map(|(name, statements)| (name.as_str(), *statements)).collect();
    assert_eq!(found, ENGINE, "what serves one tenant says as_tenant, begin_as or begin_owed");
}
