//! The issuers of tokens, with the client that fetches their keys.

use super::AppError;
use crate::api::auth::{FetchDocument, Issuers};
use crate::config::Config;
use crate::executor::documents::Documents;
use futures::FutureExt as _;
use std::sync::Arc;
use std::time::Duration;

/// Reads the issuers of the settings.
pub(super) async fn issuers(config: &Config) -> Result<Issuers, AppError> {
    let documents = Documents::new(&config.executor)?;
    let fetch: FetchDocument = Arc::new(move |uri| {
        let documents = documents.clone();
        async move { documents.fetch(uri).await.map_err(|error| error.to_string()) }.boxed()
    });
    let file_interval = Duration::from_millis(config.server.certificates_interval_ms);
    Ok(Issuers::load(&config.auth, file_interval, &fetch).await?)
}
