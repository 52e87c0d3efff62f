//! What can go wrong between the server and Postgres.

use std::io::ErrorKind;
use std::sync::Arc;

/// A statement or connection that failed. Cheap to clone: one failed commit answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No connection, a broken one, or none free in time; the outcome of the statement may be unknown.
    #[error("postgres cannot be reached")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// A statement took longer than `database.statement_timeout_ms`, and Postgres has ended it.
    #[error("a statement took longer than database.statement_timeout_ms")]
    TooSlow(#[source] Arc<sqlx::Error>),
    /// Postgres is out of disk, or read-only.
    #[error("postgres is full or read-only")]
    Full(#[source] Arc<sqlx::Error>),
    /// A unique constraint was broken; the name says which.
    #[error("constraint {constraint} was broken")]
    Conflict {
        /// The constraint's name.
        constraint: String,
    },
    /// The tenant's other work has had all the connections that it may have, for too long: nothing was done.
    #[error("the tenant's other work keeps the database busy")]
    Crowded,
    /// Somebody else holds a lock for longer than the statement waits: nothing was written.
    #[error("a row or table is locked")]
    Locked,
    /// No partition holds the row's day.
    #[error("no partition for the day")]
    PartitionMissing,
    /// A stored row does not parse: a fault of the server.
    #[error("a stored {what} does not parse")]
    Corrupt {
        /// Which kind of row or value.
        what: &'static str,
    },
    /// The request id was used before with another RPC or another body.
    #[error("the request id was used before for another request")]
    RequestIdReused,
    /// The work was dropped by a shutting-down server.
    #[error("interrupted by shutdown")]
    Interrupted,
    /// Any other failure of a statement: a fault of the server.
    #[error("statement failed")]
    Statement(#[source] Arc<sqlx::Error>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::Io(io) if io.kind() == ErrorKind::QuotaExceeded && io.raw_os_error().is_none() => {
                    Self::Crowded
                }
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unavailable(error.into()),
                _ => Self::Statement(error.into()),
            };
        };
        let code = database.code().unwrap_or_default().into_owned();
        match code.as_str() {
            "23505" => Self::Conflict { constraint: database.constraint().unwrap_or_default().to_owned() },
            "23514" if database.constraint().is_none() => Self::PartitionMissing,
            // lock_not_available
            "55P03" => Self::Locked,
            // disk_full, read_only_sql_transaction
            "53100" | "25006" => Self::Full(error.into()),
            // query_canceled: by the time that a statement may take.
            "57014" => Self::TooSlow(error.into()),
            // Connection exceptions, too many connections, administrator's shutdown, crash, not yet ready, serialization and
            // deadlock, idle transaction ended.
            "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "40001" | "40P01" | "25P03" => {
                Self::Unavailable(error.into())
            }
            code if code.starts_with("08") => Self::Unavailable(error.into()),
            _ => Self::Statement(error.into()),
        }
    }
}

#[cfg(test)]
impl StoreError {
    /// A connection that cannot be had, for the tests of other modules.
    pub fn unavailable_example() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut.into())
    }

    /// A full disk, for the tests of other modules.
    pub fn full_example() -> Self {
        Self::Full(sqlx::Error::PoolTimedOut.into())
    }
}
