//! The configuration: one TOML file, then `CARILLON_SECTION__KEY` variables, then flags; the sum of each module's own settings.
//!
//! The only reader of the environment. A key that is unknown or does not fit stops the start and is named; its value never is,
//! because any value may be a secret.

mod load;
mod reference;

pub use load::{ConfigError, Sources};
pub use reference::{Setting, reference};

use crate::api;
use crate::domain::quotas::{Limits, Quota};
use crate::store::connect;
use crate::telemetry;
use crate::wire::admin::parse_subject;
use crate::{dispatch, executor, pending, publish, watch};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

/// Everything that can be set.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Ports, TLS and the bounds of the edge.
    pub server: api::Config,
    /// Where Postgres is.
    pub database: connect::Config,
    /// Keys that encrypt secrets at rest.
    pub secrets: Secrets,
    /// Who may administer.
    pub operators: Operators,
    /// Whose tokens are credentials of the public port.
    pub auth: api::auth::config::Config,
    /// The operator's event types.
    pub catalogue: Catalogue,
    /// Group commit, the registry in memory, idempotency.
    pub publish: publish::Config,
    /// PRE events and delayed ones.
    pub pending: pending::Config,
    /// Leases, queues, attempts.
    pub dispatch: dispatch::Config,
    /// Outbound calls.
    pub executor: executor::Config,
    /// Watch streams and ListEvents.
    pub watch: watch::Config,
    /// What a tenant may have and do.
    pub limits: api::registry::Config,
    /// Logs.
    pub log: telemetry::Config,
    /// Traces.
    pub traces: telemetry::traces::Config,
}

/// Keys that encrypt secrets at rest. Kept outside the database, so that a copy of it alone opens nothing.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// The first seals, all of them open. At least one.
    #[serde(skip_serializing)]
    pub keys: Vec<SecretKey>,
}

/// One key: given in a file, or outright.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// 1 to 64 characters; stored beside what the key sealed.
    pub id: String,
    /// A file that holds the key as base64.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The key, 32 bytes as base64.
    #[serde(default)]
    pub key: Option<SecretString>,
}

/// Who may administer.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Operators {
    /// Certificate names (`uri:...` or `dns:...`) that may call AdminService.
    pub subjects: Vec<String>,
}

/// The operator's event types.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Catalogue {
    /// A TOML file with event types of the SYSTEM kind, added to the built-in ones.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads the sources, later ones over earlier ones, and checks what can be checked without starting.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let config = load::merge(sources)?;
        config.check()?;
        Ok(config)
    }

    /// Like [`Config::load`], but checks what the database needs and nothing of the ports.
    pub fn load_for_database(sources: &Sources) -> Result<Self, ConfigError> {
        let config = load::merge(sources)?;
        config.check_database()?;
        Ok(config)
    }

    /// The quotas of a tenant of which nothing else is set.
    pub fn quotas(&self) -> Limits {
        let own = |quota| match quota {
            Quota::EventBytes => self.publish.event_bytes_max as u64,
            Quota::Watches => self.watch.streams_per_tenant_max as u64,
            _ => self.limits.subscriptions_max.into(),
        };
        Limits::new(|quota| self.limits.quota(quota).unwrap_or_else(|| own(quota)))
    }

    fn check_database(&self) -> Result<(), ConfigError> {
        self.database.check().map_err(|(key, reason)| ConfigError::bad(&format!("database.{key}"), reason))
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.server.check().map_err(|(key, reason)| ConfigError::bad(&format!("server.{key}"), reason))?;
        self.check_database()?;
        self.auth.check().map_err(|(key, reason)| ConfigError::bad(&format!("auth.{key}"), reason))?;
        self.publish.check().map_err(|(key, reason)| ConfigError::bad(&format!("publish.{key}"), reason))?;
        self.pending.check().map_err(|(key, reason)| ConfigError::bad(&format!("pending.{key}"), reason))?;
        self.dispatch.check().map_err(|error| {
            ConfigError::bad(&format!("dispatch.{}", error.key), format!("must be {}", error.bounds))
        })?;
        // A retry is answered from the event that its key stands for.
        if self.publish.idempotency_hours > self.dispatch.retention_days * 24 {
            let bound = "must be at most 24 times dispatch.retention_days: a key is of no use without its event";
            return Err(ConfigError::bad("publish.idempotency_hours", bound));
        }
        self.traces.check().map_err(|(key, reason)| ConfigError::bad(&format!("traces.{key}"), reason))?;
        self.watch.check().map_err(|(key, reason)| ConfigError::bad(&format!("watch.{key}"), reason))?;
        self.limits.check().map_err(|(key, reason)| ConfigError::bad(&format!("limits.{key}"), reason))?;
        self.executor.check().map_err(|error| match error {
            executor::ExecutorError::Setting { key, bound } => {
                ConfigError::bad(&format!("executor.{key}"), format!("must be {bound}"))
            }
            error => ConfigError::bad("executor", error.to_string()),
        })?;
        for subject in &self.operators.subjects {
            parse_subject("operators.subjects", subject.clone())
                .map_err(|error| ConfigError::bad("operators.subjects", format!("each {}", error.description)))?;
        }
        Ok(())
    }
}

impl Secrets {
    /// Reads the keys: (id, key) in the order of the configuration.
    ///
    /// Errors: no key at all, an unreadable file, or a key that is not 32 bytes of base64.
    pub fn read(&self) -> Result<Vec<(String, [u8; 32])>, ConfigError> {
        const KEY: &str = "secrets.keys";
        if self.keys.is_empty() {
            return Err(ConfigError::bad(
                KEY,
                "at least one key is needed to encrypt secrets at rest; make one with `openssl rand -base64 32`",
            ));
        }
        self.keys
            .iter()
            .map(|key| {
                let text = match (&key.key, &key.key_file) {
                    (Some(text), None) => text.clone(),
                    (None, Some(path)) => fs::read_to_string(path).map(SecretString::from).map_err(|error| {
                        ConfigError::bad(KEY, format!("key {:?}: key_file cannot be read: {error}", key.id))
                    })?,
                    _ => {
                        return Err(ConfigError::bad(KEY, format!("key {:?}: set one of key_file and key", key.id)));
                    }
                };
                let bytes = STANDARD.decode(text.expose_secret().trim()).ok().and_then(|bytes| bytes.try_into().ok());
                let wrong = || ConfigError::bad(KEY, format!("key {:?}: must be 32 bytes as base64", key.id));
                bytes.map(|bytes| (key.id.clone(), bytes)).ok_or_else(wrong)
            })
            .collect()
    }
}
