//! The way to Postgres: the pool, what a database must promise before events are trusted to it, and the schema's version.
//!
//! Every check names what is wrong and the way out; none of them changes the database, only [`migrate`] does.

mod error;

pub use error::ConnectError;

use self::error::{is_soon, migrating, refusal};
use super::pool::{Doubt, Pool};
use super::role;
use super::wall::ENGINE;
use super::{MIGRATIONS, Store, StoreError};
use crate::planted::{self, Defect};
use chrono::Days;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrate as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use std::collections::HashSet;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

/// Partitions exist from yesterday, for clocks that differ, to this many days after it.
const PARTITION_DAYS: u64 = 4;

/// A connection that was idle for longer is asked for a sign of life before it is used.
pub(in crate::store) const IDLE_TRUSTED: Duration = Duration::from_secs(5);

/// How long the first connection may take: who waits for the start wants to hear soon what is wrong.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// Settings that make Postgres forget what it has acknowledged, when they are off.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", COMMITS];
/// The one of them that a database, a role or a connection may have in its own way.
const COMMITS: &str = "synchronous_commit";

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

    /// The setting that names where the tables' owner connects.
    fn owner_key(&self) -> &'static str {
        if self.migrate_url.is_some() { "migrate_url" } else { "url" }
    }

    /// How the tables' owner connects: its statements may take longer than any of the server's.
    fn owner_options(&self) -> Result<PgConnectOptions, (&'static str, String)> {
        let url = self.migrate_url.as_ref().or(self.url.as_ref());
        let url = url.ok_or_else(|| ("url", format!("is required, {HINT}")))?;
        Ok(parse(self.owner_key(), url)?.options([("statement_timeout", 0)]).options(self.session()))
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
            session.push((COMMITS, "off".to_owned()));
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

/// Connects to the address of a setting, and checks that the database keeps what it acknowledges; does not look at the schema.
async fn connect(config: &Config, key: &'static str, options: PgConnectOptions) -> Result<Pool, ConnectError> {
    let doubt = Doubt::default();
    let doubted = doubt.clone();
    let not_yet = first_connection(key, &options).await?;
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
        .connect_lazy_with(options);
    let pool = Pool::new(pool, Duration::from_millis(config.answer_timeout_ms), doubt);
    let mut first = pool.acquire().await.map_err(|error| refusal(key, not_yet.unwrap_or(error)))?;
    let commits = pool.within(check_durability(&mut first, config.unsafe_allow_lossy_postgres)).await?;
    if let Some(commits) = commits {
        pool.keep(first, COMMITS, &commits).await;
    }
    Ok(pool)
}

/// Connects once, because a pool tries until its time is over and then hides why. Answers the refusal of a server that may take
/// a connection soon: the pool waits for that one.
async fn first_connection(key: &'static str, options: &PgConnectOptions) -> Result<Option<sqlx::Error>, ConnectError> {
    match tokio::time::timeout(FIRST_CONNECTION, options.connect()).await {
        Ok(Ok(connection)) => {
            // A server that does not take the farewell has lost nothing.
            drop(connection.close().await);
            Ok(None)
        }
        Ok(Err(error)) if is_soon(&error) => Ok(Some(error)),
        Ok(Err(error)) => Err(refusal(key, error)),
        Err(_) => Err(ConnectError::Silent { key }),
    }
}

/// Opens the store of a database whose schema fits this release, and makes the partitions of the next days.
pub async fn open(config: &Config) -> Result<Store, ConnectError> {
    let options = config.options().map_err(|(key, reason)| ConnectError::Config { key, reason })?;
    let pool = connect(config, "url", options).await?;
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
    let pool = connect(config, config.owner_key(), options.clone()).await?;
    let mut connection = options.connect().await?;
    // Counted under the lock, which ends with the connection: what another migrator applies meanwhile is its own.
    connection.lock().await.map_err(migrating)?;
    let applied = match check_schema(&pool).await {
        Ok(()) => 0,
        Err(ConnectError::SchemaOlder { missing }) => missing,
        Err(other) => return Err(other),
    };
    MIGRATIONS.run(&mut connection).await.map_err(migrating)?;
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
    let store = Store::of(connect(config, config.owner_key(), options).await?);
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

/// Answers how connections have to commit, whatever becomes of the setting later: as it was found, since what is stronger than `on` is
/// the operator's choice like what suffices. None where it may be anything.
async fn check_durability(connection: &mut PgConnection, allow_lossy: bool) -> Result<Option<String>, ConnectError> {
    let mut commits = None;
    for setting in DURABILITY {
        let value = sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut *connection);
        let value: String = value.await?;
        if value != "off" || planted::has(Defect::AcknowledgeEarly) {
            commits = (setting == COMMITS).then_some(value);
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
    Ok(commits)
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

    /// Connections that the pool may have.
    pub fn connections_max(&self) -> usize {
        self.engine().connections_max()
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
