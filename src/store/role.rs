//! The role that a server logs in as: what it may do, and that the wall between tenants holds it back.
//!
//! Row-level security does not bind superusers and roles with BYPASSRLS, and an owner can lift it: a server that is one of these
//! does not start. The tables belong to the role that runs `carillon migrate`, which grants the server's role what it needs.

use super::StoreError;
use super::pool::Pool;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

/// Why a database role cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// Row-level security does not bind it.
    #[error(
        "the database role {role:?} is a superuser or has BYPASSRLS, so nothing in the database would keep tenants apart; serve as a \
         role of its own: CREATE ROLE carillon_server LOGIN, run `carillon migrate --grant-to carillon_server` as the present role, \
         and name carillon_server in database.url"
    )]
    Unbound {
        /// Its name.
        role: String,
    },
    /// It owns tables, and so can lift what holds it back.
    #[error(
        "the database role {role:?} owns table {table}, so it could lift what keeps tenants apart; serve as a role of its own: CREATE \
         ROLE carillon_server LOGIN, run `carillon migrate --grant-to carillon_server` as the present role, and name carillon_server \
         in database.url"
    )]
    Owner {
        /// Its name.
        role: String,
        /// One of the tables.
        table: String,
    },
    /// It was never let in, or not since there are more tables.
    #[error(
        "the database role {role:?} may not use table {table}; run `carillon migrate --grant-to {role}` as the role that owns the tables"
    )]
    NotGranted {
        /// Its name.
        role: String,
        /// One of the tables.
        table: String,
    },
    /// Somebody has lifted row-level security.
    #[error(
        "table {table} has no forced row-level security, or not the policy tenant_wall, so nothing would keep tenants apart in it; as \
         the role that owns the tables: ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, and CALL \
         raise_tenant_wall() where the policy is gone"
    )]
    WallDown {
        /// Which.
        table: String,
    },
    /// There is no such role.
    #[error("there is no database role {role:?} to grant anything to; make it first: CREATE ROLE {role} LOGIN")]
    Missing {
        /// Its name.
        role: String,
    },
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RoleError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Tables that a server does not do everything to: what is written stays as it is.
const NARROW: [(&str, &str); 4] = [
    ("_sqlx_migrations", "SELECT"),
    ("attempts", "SELECT, INSERT"),
    ("audit_records", "SELECT, INSERT"),
    ("events", "SELECT, INSERT"),
];
const ALL: &str = "SELECT, INSERT, UPDATE, DELETE";
/// What a server does as the tables' owner: it makes and drops days, and takes away audit records that have had their time.
const FUNCTIONS: &str =
    "make_partition(text, date), drop_partition(text, date), forget_audit_records(timestamptz, bigint)";

/// The tables of Carillon, which are those of one owner in one schema, without the days of those that have days: nobody is granted
/// these by themselves.
const TABLES: &str = "pg_catalog.pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND c.relowner = (SELECT h.relowner FROM pg_catalog.pg_class h WHERE h.oid = to_regclass('tenant_heads'))";

/// Refuses a role that the wall does not hold back, or that was not let in.
pub(in crate::store) async fn check(pool: &Pool) -> Result<(), RoleError> {
    let (role, unbound): (String, bool) = sqlx::query_as(
        "SELECT rolname::text, rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )
    .fetch_one(pool)
    .await?;
    if unbound {
        return Err(RoleError::Unbound { role });
    }
    let sql = format!(
        "SELECT c.relname::text, pg_has_role(c.relowner, 'USAGE'), has_table_privilege(c.oid, 'SELECT')
           FROM {TABLES} ORDER BY c.relname LIMIT 1000"
    );
    let tables: Vec<(String, bool, bool)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
    for (table, owned, granted) in tables {
        if owned {
            return Err(RoleError::Owner { role, table });
        }
        if !granted {
            return Err(RoleError::NotGranted { role, table });
        }
    }
    Ok(())
}

/// Refuses a database in which a tenant table stands open.
pub(in crate::store) async fn check_wall(pool: &Pool) -> Result<(), RoleError> {
    let sql = format!(
        "SELECT c.relname::text FROM {TABLES}
            AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
                         WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity
                     AND EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant_wall'))
          ORDER BY c.relname LIMIT 1"
    );
    match sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(pool).await? {
        Some(table) => Err(RoleError::WallDown { table }),
        None => Ok(()),
    }
}

/// Lets roles use the tables as a server does: these, and those that were let before, since a step may have made more tables. Answers
/// which they are. As the tables' owner.
pub(in crate::store) async fn grant(
    connection: &mut PgConnection,
    roles: Vec<String>,
) -> Result<Vec<String>, RoleError> {
    let before: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
           JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
          WHERE c.oid = 'tenant_heads'::regclass AND a.privilege_type = 'UPDATE' AND a.grantee <> c.relowner
          ORDER BY 1 LIMIT 1000",
    )
    .fetch_all(&mut *connection)
    .await?;
    let sql = format!(
        "SELECT c.relname::text FROM {TABLES} AND pg_has_role(c.relowner, 'USAGE') ORDER BY c.relname LIMIT 1000"
    );
    let tables: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
    let mut roles: Vec<String> = roles.into_iter().chain(before).collect();
    roles.sort();
    roles.dedup();
    for role in &roles {
        let exists: Option<bool> = sqlx::query_scalar(
            "SELECT has_schema_privilege(rolname, current_schema(), 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = $1",
        )
        .bind(role)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(sees_schema) = exists else { return Err(RoleError::Missing { role: role.clone() }) };
        let to = quoted(role);
        let mut statements = vec![format!("GRANT EXECUTE ON FUNCTION {FUNCTIONS} TO {to}")];
        if !sees_schema {
            let schema: String =
                sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut *connection).await?;
            statements.push(format!("GRANT USAGE ON SCHEMA {} TO {to}", quoted(&schema)));
        }
        for table in &tables {
            let narrow = NARROW.iter().find(|(name, _)| name == table);
            let may = narrow.map_or(ALL, |(_, may)| *may);
            statements.push(format!("GRANT {may} ON {} TO {to}", quoted(table)));
        }
        // One implicit transaction: a role may everything or nothing new.
        connection.execute(AssertSqlSafe(statements.join("; "))).await?;
    }
    Ok(roles)
}

/// A name as an identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
