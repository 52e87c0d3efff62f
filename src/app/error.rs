//! Why a server cannot start.

use crate::api::auth::IssuerError;
use crate::api::server::ListenError;
use crate::api::tls::TlsError;
use crate::config::ConfigError;
use crate::domain::catalogue::CatalogueError;
use crate::executor::ExecutorError;
use crate::store::StoreError;
use crate::store::connect::ConnectError;
use crate::store::secrets::KeyringError;
use crate::store::settings::SettingError;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Database(#[from] ConnectError),
    /// A statement of the start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys of secrets at rest.
    #[error("secrets.keys: {0}")]
    Keyring(#[from] KeyringError),
    /// A value that all replicas share.
    #[error("the key that seals cursors: {0}")]
    Setting(#[from] SettingError),
    /// The operator's catalogue file cannot be read.
    #[error("catalogue.file cannot be read")]
    CatalogueFile(#[source] std::io::Error),
    /// The operator's catalogue file is wrong.
    #[error("catalogue.file: {0}")]
    Catalogue(#[from] CatalogueError),
    /// The outbound client.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An issuer of tokens.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A socket that does not know its address.
    #[error("a socket has no address")]
    Address(#[source] std::io::Error),
}
