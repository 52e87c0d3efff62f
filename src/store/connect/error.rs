//! Why a database cannot be used: the setting that names it, Postgres's own words, and the way out. Never the address, which may hold
//! a password.

use super::FIRST_CONNECTION;
use crate::store::StoreError;
use crate::store::role::RoleError;
use sqlx::migrate::MigrateError;

/// SQLSTATEs of a server that starts, or is full, and may take a connection soon.
const SOON: [&str; 2] = ["57P03", "53300"];

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration.
    #[error("setting database.{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// The rule it breaks.
        reason: String,
    },
    /// No connection.
    #[error("no connection to the postgres that database.{key} names; check the address, and that the server runs")]
    Unreachable {
        /// The setting that names it.
        key: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Postgres does not take the first connection.
    #[error("the postgres that database.{key} names refuses the connection: {message}; {way_out}")]
    Refused {
        /// The setting that names it.
        key: &'static str,
        /// What Postgres says.
        message: String,
        /// What helps.
        way_out: &'static str,
    },
    /// No answer to the first connection.
    #[error(
        "the postgres that database.{key} names has not answered within {} s; check host and port, and that the server runs",
        FIRST_CONNECTION.as_secs()
    )]
    Silent {
        /// The setting that names it.
        key: &'static str,
    },
    /// Postgres would lose acknowledged events in a crash.
    #[error(
        "postgres runs with {setting} = off, so it may lose events that were acknowledged; set {setting} = on (for throw-away use: database.unsafe_allow_lossy_postgres = true)"
    )]
    Lossy {
        /// Which setting.
        setting: &'static str,
    },
    /// The database lacks schema steps.
    #[error(
        "the database's schema is older than this release ({missing} step(s) missing); run `carillon migrate` first"
    )]
    SchemaOlder {
        /// How many.
        missing: usize,
    },
    /// The database has schema steps that this release does not know.
    #[error("the database's schema is newer than this release (step {version} is unknown here); use a newer release")]
    SchemaNewer {
        /// The first one.
        version: i64,
    },
    /// A schema step that was applied differs from this release's.
    #[error("schema step {version} in the database differs from this release's; use the release that made it")]
    SchemaDiffers {
        /// Which one.
        version: i64,
    },
    /// The server's role is not one that the wall between tenants holds back.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// A schema step failed.
    #[error("migrating the database failed: {0}")]
    Migrate(String),
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ConnectError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Whether a refusal is one of a server that may take a connection soon.
pub(super) fn is_soon(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| SOON.contains(&&*code))
}

/// Why the first connection failed; Postgres's own words where it has said any.
pub(super) fn refusal(key: &'static str, error: sqlx::Error) -> ConnectError {
    match &error {
        sqlx::Error::Database(refused) => {
            let way_out = way_out(&refused.code().unwrap_or_default());
            ConnectError::Refused { key, message: refused.message().to_owned(), way_out }
        }
        _ => ConnectError::Unreachable { key, source: error },
    }
}

/// What helps against a refusal, by its SQLSTATE.
fn way_out(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => "check role and password in the address, and that pg_hba.conf lets the role in",
        "3D000" => "make it with CREATE DATABASE, or name another one in the address",
        "42501" => "let the role of the address in with GRANT CONNECT ON DATABASE",
        code if SOON.contains(&code) => "try again soon",
        _ => "its log may say more",
    }
}

/// Why a schema step failed, in Postgres's own words.
pub(super) fn migrating(error: MigrateError) -> ConnectError {
    let (step, error) = match error {
        MigrateError::Execute(error) => (String::new(), error),
        MigrateError::ExecuteMigration(error, version) => (format!("step {version}: "), error),
        other => return ConnectError::Migrate(other.to_string()),
    };
    ConnectError::Migrate(match error.as_database_error() {
        Some(refused) if refused.code().as_deref() == Some("42501") => {
            format!("{step}{}; migrate as the role that owns the database", refused.message())
        }
        Some(refused) => format!("{step}{}", refused.message()),
        None => format!("{step}{error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_way_out() {
        for code in ["28P01", "28000"] {
            assert!(way_out(code).contains("password"));
        }
        assert!(way_out("3D000").contains("CREATE DATABASE"));
        assert!(way_out("42501").contains("GRANT CONNECT"));
        assert!(SOON.map(way_out).iter().all(|way_out| way_out.contains("try again")));
    }
}
