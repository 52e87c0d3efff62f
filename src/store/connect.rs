//! The way to Postgres: the pool, what a database must promise before events are trusted to it, and the schema's version.
//!
//! Every check names what is wrong and the way out; none of them changes the database, only [`migrate`] does.

use super::pool::{Doubt, Pool};
use super::role::{self, RoleError};
use super::wall::ENGINE;
use super::{MIGRATIONS, Store, StoreError};
use crate::planted::{self, Defect};
use chrono::Days;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrate as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};
use std::collections::HashSet;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

/// Partitions exist from yesterday, for clocks that differ, to this many days after it.
const PARTITION_DAYS: u64 = 4;

/// A connection that was idle for longer is asked for a sign of life before it is used.
pub(in crate::store) const IDLE_TRUSTED: Duration = Duration::from_secs(5);

/// How long the first connection may take: who waits for the start wants to hear soon what is wrong.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// SQLSTATEs of a server that starts, or is full, and may take a connection soon.
const SOON: [&str; 2] = ["57P03", "53300"];

/// Settings that make Postgres forget what it has acknowledged, when they are off.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Where Postgres is, and how it is used.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `postgres://user@host/database`. Required.
    #[serde(skip_serializing)]
    pub url: Option<SecretString>,
    /// The same database as the role that owns its tables: what `carillon migrate` and `serve --migrate` connect to, and then let
    /// the role of `url` use the tables. None where `url` is the owner's.
    #[serde(skip_serializing)]
    pub migrate_url: Option<SecretString>,
    /// Connections of the pool. 2 to 1,000.
    pub connections_max: u32,
    /// How long a call waits for a connection, milliseconds. 1 to 60,000.
    pub acquire_timeout_ms: u64,
    /// Longest statement, milliseconds: Postgres ends it then. 100 to 600,000.
    pub statement_timeout_ms: u64,
    /// How long an answer of Postgres is waited for, milliseconds: a server that has vanished without a word holds nothing up for
    /// longer. Above `statement_timeout_ms`, so that a slow statement is ended by Postgres. 200 to 1,200,000.
    pub answer_timeout_ms: u64,
    /// Longest pause inside a transaction, milliseconds. 100 to 600,000.
    pub idle_in_transaction_timeout_ms: u64,
    /// Hear at once what other replicas tell, on a connection of its own. Not through a transaction pooler, where others would get
    /// that connection: what is not heard is found by `dispatch.poll_ms`.
    pub listen: bool,
    /// Start although Postgres may lose acknowledged events. Throw-away use only.
    pub unsafe_allow_lossy_postgres: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            migrate_url: None,
            connections_max: 16,
            acquire_timeout_ms: 5_000,
            statement_timeout_ms: 8_000,
            answer_timeout_ms: 10_000,
            idle_in_transaction_timeout_ms: 10_000,
            listen: true,
            unsafe_allow_lossy_postgres: false,
        }
    }
}

impl Config {
    /// Checks the bounds. Errors: the key and the rule it breaks.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) { Ok(()) } else { Err((key, format!("must be {from} to {to}"))) }
        };
        within("connections_max", self.connections_max.into(), 2, 1_000)?;
        within("acquire_timeout_ms", self.acquire_timeout_ms, 1, 60_000)?;
        within("statement_timeout_ms", self.statement_timeout_ms, 100, 600_000)?;
        within("answer_timeout_ms", self.answer_timeout_ms, 200, 1_200_000)?;
        if self.answer_timeout_ms <= self.statement_timeout_ms {
            return Err(("answer_timeout_ms", "must be above statement_timeout_ms".to_owned()));
        }
        within("idle_in_transaction_timeout_ms", self.idle_in_transaction_timeout_ms, 100, 600_000)?;
        self.owner_options().and(self.options()).map(drop)
    }

    /// How the server connects.
    fn options(&self) -> Result<PgConnectOptions, (&'static str, String)> {
        let url = self.url.as_ref().ok_or_else(|| ("url", format!("is required, {HINT}")))?;
        Ok(parse("url", url)?.options([("statement_timeout", self.statement_timeout_ms)]).options(self.session()))
    }

    /// How the tables' owner connects: its statements may take longer than any of the server's.
    fn owner_options(&self) -> Result<PgConnectOptions, (&'static str, String)> {
        let Some(url) = &self.migrate_url else {
            let url = self.url.as_ref().ok_or_else(|| ("url", format!("is required, {HINT}")))?;
            return Ok(parse("url", url)?.options([("statement_timeout", 0)]).options(self.session()));
        };
        Ok(parse("migrate_url", url)?.options([("statement_timeout", 0)]).options(self.session()))
    }

    /// What every connection starts with. Nothing is ever set for a session by a statement: behind a transaction pooler it would
    /// stay with a connection that others use next. Every statement reaches its rows by a key, whatever the values: planning it
    /// again for each call would cost a publish more than running it does.
    fn session(&self) -> Vec<(&'static str, String)> {
        let mut session = vec![
            ("idle_in_transaction_session_timeout", self.idle_in_transaction_timeout_ms.to_string()),
            ("client_min_messages", "warning".to_owned()),
            ("plan_cache_mode", "force_generic_plan".to_owned()),
        ];
        if planted::has(Defect::AcknowledgeEarly) {
            session.push(("synchronous_commit", "off".to_owned()));
        }
        session
    }
}

const HINT: &str = "e.g. postgres://user@host:5432/database";

fn parse(key: &'static str, url: &SecretString) -> Result<PgConnectOptions, (&'static str, String)> {
    // The parser takes any scheme.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.expose_secret().starts_with(scheme)) {
        return Err((key, format!("is not a Postgres address: it must begin with postgres://, {HINT}")));
    }
    // The parser's own error may quote the address, which may hold a password.
    let options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|_| (key, format!("is not a Postgres address, {HINT}")))?;
    Ok(options.application_name(ENGINE).disable_statement_logging())
}

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
    #[error("no connection to the postgres that database.url names; check the address, and that the server runs")]
    Unreachable(#[source] sqlx::Error),
    /// No answer to the first connection.
    #[error(
        "the postgres that database.url names has not answered within {} s; check host and port, and that the server runs",
        FIRST_CONNECTION.as_secs()
    )]
    Silent,
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
    #[error("migrating the database failed")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ConnectError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Connects and checks that the database keeps what it acknowledges; does not look at the schema.
async fn connect(config: &Config, options: PgConnectOptions) -> Result<Pool, ConnectError> {
    let doubt = Doubt::default();
    let doubted = doubt.clone();
    let not_yet = first_connection(&options).await?;
    let pool = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(Duration::from_millis(config.acquire_timeout_ms))
        // A ping for every use would double the round trips of a publish; a connection that was just used is alive.
        .test_before_acquire(false)
        .before_acquire(move |connection, usage| {
            let doubted = Instant::now().checked_sub(usage.idle_for).is_none_or(|used_at| doubted.since(used_at));
            Box::pin(async move {
                if doubted {
                    return Ok(false);
                }
                if usage.idle_for > IDLE_TRUSTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_with(options)
        .await
        .map_err(|error| ConnectError::Unreachable(not_yet.unwrap_or(error)))?;
    let pool = Pool::new(pool, Duration::from_millis(config.answer_timeout_ms), doubt);
    check_durability(&pool, config.unsafe_allow_lossy_postgres).await?;
    Ok(pool)
}

/// Connects once, because a pool tries until its time is over and then hides why. Answers the refusal of a server that may take
/// a connection soon: the pool waits for that one.
async fn first_connection(options: &PgConnectOptions) -> Result<Option<sqlx::Error>, ConnectError> {
    match tokio::time::timeout(FIRST_CONNECTION, options.connect()).await {
        Ok(Ok(connection)) => {
            // A server that does not take the farewell has lost nothing.
            drop(connection.close().await);
            Ok(None)
        }
        Ok(Err(sqlx::Error::Database(refusal))) if refusal.code().is_some_and(|code| SOON.contains(&&*code)) => {
            Ok(Some(sqlx::Error::Database(refusal)))
        }
        Ok(Err(error)) => Err(ConnectError::Unreachable(error)),
        Err(_) => Err(ConnectError::Silent),
    }
}

/// Opens the store of a database whose schema fits this release, and makes the partitions of the next days.
pub async fn open(config: &Config) -> Result<Store, ConnectError> {
    let options = config.options().map_err(|(key, reason)| ConnectError::Config { key, reason })?;
    let pool = connect(config, options).await?;
    role::check(&pool).await?;
    check_schema(&pool).await?;
    role::check_wall(&pool).await?;
    warn_of_lost_settings(&pool, config).await?;
    let store = Store { listens: config.listen, ..Store::of(pool) };
    prepare(&store).await?;
    Ok(store)
}

/// What was brought up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// How many schema steps were applied.
    pub applied: usize,
    /// The roles that may use the tables as a server does.
    pub granted: Vec<String>,
}

/// Brings the schema to this release's, under a lock that a second migrator waits for, and lets roles use it: the given ones, that of
/// `url` where the owner has an address of its own, and those that were let before.
pub async fn migrate(config: &Config, grant_to: &[String]) -> Result<Migrated, ConnectError> {
    let refused = |(key, reason)| ConnectError::Config { key, reason };
    let mut grant_to = grant_to.to_vec();
    if config.migrate_url.is_some() {
        grant_to.push(config.options().map_err(refused)?.get_username().to_owned());
    }
    let options = config.owner_options().map_err(refused)?;
    let pool = connect(config, options.clone()).await?;
    let mut connection = options.connect().await?;
    // Counted under the lock, which ends with the connection: what another migrator applies meanwhile is its own.
    connection.lock().await.map_err(ConnectError::Migrate)?;
    let applied = match check_schema(&pool).await {
        Ok(()) => 0,
        Err(ConnectError::SchemaOlder { missing }) => missing,
        Err(other) => return Err(other),
    };
    MIGRATIONS.run(&mut connection).await.map_err(ConnectError::Migrate)?;
    let granted = role::grant(&mut connection, grant_to).await?;
    let store = Store::of(pool);
    prepare(&store).await?;
    // The lock until here: another migrator's grants and the partitions change the same rows of the catalogue.
    connection.close().await?;
    store.close().await;
    Ok(Migrated { applied, granted })
}

/// Gives every log a new life, as after a restore that leaves the database its identity; as the tables' owner. Answers how many
/// tenants' cursors that ended.
pub async fn renew_logs(config: &Config) -> Result<u64, ConnectError> {
    let options = config.owner_options().map_err(|(key, reason)| ConnectError::Config { key, reason })?;
    let store = Store::of(connect(config, options).await?);
    let renewed = store.renew_logs().await?;
    store.close().await;
    Ok(renewed)
}

async fn prepare(store: &Store) -> Result<(), ConnectError> {
    store.measure_clock().await?;
    let yesterday = store.now().date_naive() - Days::new(1);
    store.ensure_partitions(yesterday, PARTITION_DAYS).await?;
    store.notice_restore().await?;
    Ok(())
}

async fn check_durability(pool: &Pool, allow_lossy: bool) -> Result<(), ConnectError> {
    for setting in DURABILITY {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(pool).await?;
        if value != "off" || planted::has(Defect::AcknowledgeEarly) {
            continue;
        }
        if !allow_lossy {
            return Err(ConnectError::Lossy { setting });
        }
        tracing::warn!(
            setting,
            "UNSAFE: postgres may lose acknowledged events in a crash; database.unsafe_allow_lossy_postgres allows it"
        );
    }
    Ok(())
}

/// A pooler may have dropped what connections start with; then it must be the role's.
async fn warn_of_lost_settings(pool: &Pool, config: &Config) -> Result<(), ConnectError> {
    for (name, wanted) in config.session() {
        let (value, unit): (String, Option<String>) =
            sqlx::query_as("SELECT setting, unit FROM pg_catalog.pg_settings WHERE name = $1")
                .bind(name)
                .fetch_one(pool)
                .await?;
        if value != wanted {
            let unit = unit.unwrap_or_default();
            tracing::warn!(
                setting = name,
                "a pooler dropped what the connection starts with; set it for the server's role: ALTER ROLE ... SET {name} = '{wanted}{unit}'"
            );
        }
    }
    Ok(())
}

async fn check_schema(pool: &Pool) -> Result<(), ConnectError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    let applied: Vec<(i64, Vec<u8>)> = if exists {
        sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version LIMIT 10000")
            .fetch_all(pool)
            .await?
    } else {
        Vec::new()
    };
    for (version, checksum) in &applied {
        match MIGRATIONS.iter().find(|step| step.version == *version) {
            None => return Err(ConnectError::SchemaNewer { version: *version }),
            Some(step) if step.checksum.as_ref() != checksum.as_slice() => {
                return Err(ConnectError::SchemaDiffers { version: *version });
            }
            Some(_) => {}
        }
    }
    let applied: HashSet<i64> = applied.into_iter().map(|(version, _)| version).collect();
    match MIGRATIONS.iter().filter(|step| !applied.contains(&step.version)).count() {
        0 => Ok(()),
        missing => Err(ConnectError::SchemaOlder { missing }),
    }
}

impl Store {
    /// True where Postgres answers within the time given.
    pub async fn is_reachable(&self, within: Duration) -> bool {
        let ping = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(self.engine());
        tokio::time::timeout(within, ping).await.is_ok_and(|answer| answer.is_ok())
    }

    /// Connections of the pool: (open, idle).
    pub fn connections(&self) -> (u32, usize) {
        self.engine().connections()
    }

    /// Makes the partitions of the coming days where they are missing; asked for once in a while by the server.
    pub async fn ensure_coming_partitions(&self) -> Result<(), StoreError> {
        self.ensure_partitions(self.now().date_naive() - Days::new(1), PARTITION_DAYS).await
    }

    /// Closes every connection, after the statements that run.
    pub async fn close(&self) {
        self.engine().close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_does_not_parse_is_refused_without_its_text() {
        let config = Config { url: Some("postgres//user:hunter2@".into()), ..Config::default() };
        let (key, reason) = config.check().unwrap_err();
        assert_eq!(key, "url");
        assert!(!reason.contains("hunter2"));
        assert_eq!(Config::default().check().unwrap_err().0, "url");
        let config = Config { url: Some("mysql://user:hunter2@localhost/x".into()), ..Config::default() };
        let (key, reason) = config.check().unwrap_err();
        assert_eq!(key, "url");
        assert!(reason.contains("must begin with postgres://") && !reason.contains("hunter2"), "{reason}");
    }

    #[test]
    fn bounds_are_checked() {
        let url: Option<SecretString> = Some("postgres://user@localhost/x".into());
        assert!(Config { url: url.clone(), ..Config::default() }.check().is_ok());
        let config = Config { url, connections_max: 1, ..Config::default() };
        assert_eq!(config.check().unwrap_err().0, "connections_max");
        let config = Config { connections_max: 2, statement_timeout_ms: 10_000, ..config };
        assert_eq!(config.check().unwrap_err().0, "answer_timeout_ms");
    }
}
